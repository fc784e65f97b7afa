"""Dice overlap of label maps."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]

MAX_TABLE_LABELS = 2048  # smaller labels are counted in a table, others are sorted first


def _table_size(*volumes: Labels) -> int:
    """Return one more than the largest label, or 0 if a table of all label pairs is too large."""
    if not all(volume.size and np.issubdtype(volume.dtype, np.integer) for volume in volumes):
        return 0
    unsigned = (v.view(v.dtype.str.replace("i", "u")) for v in volumes)  # negative ones are huge
    size = max(int(v.max()) for v in unsigned) + 1
    return size if size <= MAX_TABLE_LABELS else 0


def _unique_labels(volume: Labels) -> set[int]:
    if size := _table_size(volume):
        labels = np.flatnonzero(np.bincount(volume.ravel(), minlength=size))
    else:
        labels = np.unique(volume)
    return set(labels.tolist())


def find_labels(fixed: Labels, moving: Labels) -> dict[int, bool]:
    """Return every nonzero label of either volume, and whether both volumes have it.

    Only labels of both can be compared.  ``moving`` is the volume before warping, so that a label
    that vanishes in the warped image still counts.
    """
    labels = [_unique_labels(volume) - {0} for volume in (fixed, moving)]
    return {
        label: all(label in unique for unique in labels) for label in sorted(set.union(*labels))
    }


def joint_histogram(first: Labels, second: Labels) -> tuple[NDArray, NDArray[np.int64]]:
    """Count the voxels of every pair of labels.

    Returns:
        All labels of either volume, sorted, and a matrix whose entry (i, j) is the number of voxels
        with the i-th label in ``first`` and the j-th in ``second``.

    >>> joint_histogram(np.array([0, 0, 5]), np.array([0, 5, 5]))[1]
    array([[1, 1],
           [0, 1]])
    """
    if size := _table_size(first, second):
        cell = np.multiply(first, size, dtype=np.intp)
        cell += second.astype(np.intp, copy=False)
        table = np.bincount(cell.ravel(), minlength=size**2).reshape(size, size)
        values = np.flatnonzero(table.sum(0) + table.sum(1))
        return values, table[np.ix_(values, values)]
    values = np.union1d(first, second)
    count = len(values)
    cell = np.searchsorted(values, first.ravel()) * count + np.searchsorted(values, second.ravel())
    return values, np.bincount(cell, minlength=count * count).reshape(count, count)


def dice(fixed: Labels, moving: Labels, warped: Labels) -> dict[int, float]:
    """Compute 2 |F & W| / (|F| + |W|) of every label.

    Args:
        fixed: (*spatial) labels of the fixed image, 0 is background.
        moving: Labels of the moving image before warping, any shape.
        warped: (*spatial) warped labels of the moving image.

    Returns:
        Dice by label; NaN where ``fixed`` or ``moving`` lacks it, 0 where only ``warped`` does.

    >>> fixed, moving = np.array([0, 1, 1, 2]), np.array([1, 1, 0, 3])
    >>> dice(fixed, moving, warped=np.array([0, 1, 0, 3]))
    {1: 0.6666666666666666, 2: nan, 3: nan}
    """
    values, counts = joint_histogram(fixed, warped)
    fixed_size = counts.sum(1)
    total = counts.sum(0) + fixed_size
    scores = dict(zip(values.tolist(), (2 * counts.diagonal() / total).tolist(), strict=True))
    labels = [set(values[fixed_size > 0].tolist()) - {0}, _unique_labels(moving) - {0}]
    comparable = set.intersection(*labels)
    return {k: scores[k] if k in comparable else np.nan for k in sorted(set.union(*labels))}
