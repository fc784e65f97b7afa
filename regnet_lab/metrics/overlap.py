"""Overlap of labelled volumes."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]

TABLE = 2048  # labels below this are counted in a table, others are sorted first


def _countable(*volumes: Labels) -> int:
    """One more than the greatest label, if a table of all pairs of labels is small; else 0."""
    if not all(volume.size and np.issubdtype(volume.dtype, np.integer) for volume in volumes):
        return 0
    unsigned = (v.view(v.dtype.str.replace("i", "u")) for v in volumes)  # negative ones are huge
    count = max(int(v.max()) for v in unsigned) + 1
    return count if count <= TABLE else 0


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


def joint_histogram(first: Labels, second: Labels) -> tuple[NDArray, NDArray[np.int64]]:
    """All labels of either volume, sorted, and how many voxels hold the i-th of them in ``first``
    and the j-th in ``second``.
    """
    if count := _countable(first, second):
        cell = np.multiply(first, count, dtype=np.intp)
        cell += second.astype(np.intp, copy=False)
        table = np.bincount(cell.ravel(), minlength=count**2).reshape(count, count)
        values = np.flatnonzero(table.sum(0) + table.sum(1))
        return values, table[np.ix_(values, values)]
    values = np.union1d(first, second)
    count = len(values)
    cell = np.searchsorted(values, first.ravel()) * count + np.searchsorted(values, second.ravel())
    return values, np.bincount(cell, minlength=count * count).reshape(count, count)


def dice(fixed: Labels, moving: Labels, warped: Labels) -> dict[int, float]:
    """2 |F & W| / (|F| + |W|) of every label, from one joint histogram.

    Args:
        fixed: (*spatial) labels of the fixed image, 0 is background.
        moving: Labels of the moving image before it is warped, any shape.
        warped: (*spatial) labels of the moving image seen through the displacement.

    Returns:
        Dice by label; NaN where ``fixed`` or ``moving`` lacks it, 0 where only ``warped`` does.
    """
    values, counts = joint_histogram(fixed, warped)
    of_fixed = counts.sum(1)
    total = counts.sum(0) + of_fixed
    score = dict(zip(values.tolist(), (2 * counts.diagonal() / total).tolist(), strict=True))
    held = [set(values[of_fixed > 0].tolist()) - {0}, _values(moving) - {0}]
    both = set.intersection(*held)
    return {k: score[k] if k in both else np.nan for k in sorted(set.union(*held))}
