"""Overlap of labelled volumes."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]

TABLE = 2048  # labels below this are counted in a table, others are sorted first


def _countable(*volumes: Labels) -> int:
    """One more than the greatest label, if a table of all pairs of labels is small; else 0."""
    if not all(volume.size and np.issubdtype(volume.dtype, np.integer) for volume in volumes):
        return 0
    least, most = min(v.min() for v in volumes), max(v.max() for v in volumes)
    return int(most) + 1 if least >= 0 and most < TABLE else 0


def _values(volume: Labels) -> set[int]:
    if count := _countable(volume):
        found = np.flatnonzero(np.bincount(volume.ravel(), minlength=count))
    else:
        found = np.unique(volume)
    return set(found.tolist())


def presence(fixed: Labels, moving: Labels) -> dict[int, bool]:
    """Every label but 0 that either volume holds, and whether both hold it.

    Only a label of both can be compared; ``moving`` is the volume before it is warped, so that a
    label the registration made vanish still counts.
    """
    found = [_values(volume) - {0} for volume in (fixed, moving)]
    return {label: all(label in one for one in found) for label in sorted(set.union(*found))}


def joint_histogram(first: Labels, second: Labels, values: NDArray) -> NDArray[np.int64]:
    """How many voxels hold values[i] in ``first`` and values[j] in ``second``; values sorted, and
    all there are.
    """
    if count := _countable(first, second, values):
        cell = np.multiply(first, count, dtype=np.intp)
        cell += second.astype(np.intp, copy=False)
        return np.bincount(cell.ravel(), minlength=count**2).reshape(count, count)[
            np.ix_(values, values)
        ]
    count = len(values)
    cell = np.searchsorted(values, first.ravel()) * count + np.searchsorted(values, second.ravel())
    return np.bincount(cell, minlength=count * count).reshape(count, count)


def dice(fixed: Labels, moving: Labels, warped: Labels) -> dict[int, float]:
    """2 |F & W| / (|F| + |W|) of every label, from one joint histogram.

    Args:
        fixed: (*spatial) labels of the fixed image, 0 is background.
        moving: Labels of the moving image before it is warped, any shape.
        warped: (*spatial) labels of the moving image seen through the displacement.

    Returns:
        Dice by label; NaN where ``fixed`` or ``moving`` lacks it, 0 where only ``warped`` does.
    """
    known = presence(fixed, moving)
    values = np.array(sorted({0, *known}))
    counts = joint_histogram(fixed, warped, values)
    total = counts.sum(0) + counts.sum(1)
    score = 2 * counts.diagonal() / np.maximum(total, 1)
    by_value = dict(zip(values.tolist(), score.tolist(), strict=True))
    return {label: by_value[label] if both else np.nan for label, both in known.items()}
