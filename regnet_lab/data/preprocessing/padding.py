"""Detection of padding: the constant value that surrounds an image, and what is not a number.

Padding has no part in the range of intensities (:func:`find_padding`).  Where rotation or
resampling has left it, its edge would be aligned as if it were anatomy, so the image is continued
into it (:func:`find_valid_region`, :func:`extend_valid_region`).  This is distinguished from a
background of one value, such as air or a removed skull, by its shape: the image inside is a
parallelepiped.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MIN_SHARE = 0.5  # of the corners, or of the border, that padding fills
MAX_POINTS = 50_000  # voxels from which the parallelepiped is estimated
MAX_MISMATCH = 0.1  # share of voxels in which it may differ from the image's region
UNIT_CUBE_HALF_SIDE = np.sqrt(3)  # half the side of a cube whose coordinates have variance one


def _find_border(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find the outermost of the ``known`` voxels."""
    if not known.all():
        return known & ~ndimage.binary_erosion(known)
    border = np.ones(known.shape, bool)
    border[tuple(slice(1, -1) if n > 2 else slice(None) for n in known.shape)] = any(
        n <= 2 for n in known.shape
    )
    return border


def _find_common_value(values: NDArray, share: float) -> float | None:
    """Return the most frequent value if at least a ``share`` of the values equals it, or None."""
    if not values.size:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    frequent = counts.max() >= max(share * values.size, 2)
    return float(distinct[counts.argmax()]) if frequent else None


def find_padding_value(image: NDArray) -> float | None:
    """Return the value of the padding around an image, or None if it has none.

    It is the value of half of the corners, or else of half of the outermost voxels; voxels that are
    not finite lie outside.
    """
    known = np.isfinite(image)
    corners = image[np.ix_(*[(0, n - 1) for n in image.shape])]
    value = _find_common_value(corners[np.isfinite(corners)], MIN_SHARE)
    if value is None or not known.all():
        value = _find_common_value(image[_find_border(known)], MIN_SHARE)
    return value


def find_padding(image: NDArray) -> NDArray[np.bool_]:
    """Find the padding of an image (*spatial).

    It consists of the voxels that are not finite and of the regions of
    :func:`find_padding_value` that reach the border of the others.
    """
    known = np.isfinite(image)
    value = find_padding_value(image)
    if value is None:
        return ~known
    components, count = ndimage.label(image == value)
    outer = np.zeros(count + 1, bool)
    outer[components[_find_border(known)]] = True
    outer[0] = False
    return outer[components] | ~known


def fit_parallelepiped(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fit the parallelepiped with the moments of a region and return its voxels.

    The coordinates of points spread evenly over a parallelepiped are independent along its edges.
    Whitening, followed by the rotation of least kurtosis from the fixed-point iteration of
    independent component analysis (Hyvarinen, IEEE TNN 1999), maps it to a cube.
    """
    points = np.argwhere(region)
    sample = points[:: -(-len(points) // MAX_POINTS)].T.astype(np.float64)
    mean = sample.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(sample))
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-9))).T
    y = whitening @ (sample - mean)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=whitening.shape))[0]
    for _ in range(100):
        left, _, right = np.linalg.svd((rotation @ y) ** 3 @ y.T / y.shape[1] - 3 * rotation)
        rotation = left @ right
    inside = np.ones(region.shape, bool)
    axes = np.ogrid[tuple(map(slice, region.shape))]
    for row in rotation @ whitening:
        steps = (step * axis for step, axis in zip(row, axes, strict=True))
        inside &= np.abs(sum(steps, start=-row @ mean[:, 0])) <= UNIT_CUBE_HALF_SIDE
    return inside


def find_valid_region(image: NDArray) -> NDArray[np.bool_]:
    """Find the voxels of an image (*spatial) that are not padding.

    These are the voxels of a parallelepiped surrounded by a constant value, without its outermost
    layer, which was interpolated with the padding; all voxels if there is no such
    parallelepiped, it is too thin, or all its voxels have one value.
    """
    everything = np.ones(image.shape, bool)
    region = ~find_padding(image)
    if region.all() or region.sum() < 2**image.ndim:
        return everything
    fitted = fit_parallelepiped(region)
    core = ndimage.binary_erosion(fitted, border_value=True)
    fits = (fitted ^ region).sum() <= MAX_MISMATCH * region.sum()
    fits = fits and 2 * core.sum() > region.sum() and np.ptp(image[core]) > 0
    return core if fits else everything


def extend_valid_region(image: NDArray, valid: NDArray[np.bool_]) -> NDArray:
    """Replace all other voxels of an image by the value of the nearest valid one."""
    if valid.all():
        return image
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return image[tuple(nearest)]
