"""The range of an image's intensities that is mapped to [0, 1], without its padding."""

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.preprocessing.padding import find_padding

MAX_LEVELS = 32  # of a label map or a binary image; images of more values have percentiles
PROBE_VOXELS = 10_000  # in which more values than that are looked for first


def has_few_levels(values: NDArray) -> bool:
    """Check whether at most ``MAX_LEVELS`` different values occur."""
    probe = values[:: -(-values.size // PROBE_VOXELS)]
    return len(np.unique(probe)) <= MAX_LEVELS and len(np.unique(values)) <= MAX_LEVELS


def compute_intensity_range(image: NDArray, low: float, high: float) -> tuple[float, float]:
    """Compute the ``low`` and ``high`` percentiles of the voxels that are not padding.

    Where both coincide, and for images of few levels (label maps, binary images), they are the
    smallest and the largest value instead.  In an image of few levels the padding is a level too:
    its value widens the range, at most to twice its width.  Both are 0 if no voxel is finite.

    Args:
        image: (*spatial); voxels that are not finite count as padding.
        low: Lower percentile, 0 to 100.
        high: Upper percentile.
    """
    padding = find_padding(image)
    content, outside = image[~padding], image[padding & np.isfinite(image)]
    if not content.size:
        content, outside = outside, content
    if not content.size:
        return 0.0, 0.0
    few = has_few_levels(content)
    start, stop = np.percentile(content, [0, 100] if few else [low, high]).tolist()
    if start == stop:
        start, stop = float(content.min()), float(content.max())
    if few and outside.size:
        value, width = float(outside[0]), (stop - start) or np.inf
        start = min(start, max(value, start - width))
        stop = max(stop, min(value, stop + width))
    return start, stop
