"""Distances between the surfaces of two structures."""

from collections.abc import Iterable

import numpy as np
import surface_distance
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

MAX_CONSECUTIVE_LABEL = 2**16  # find_objects makes an entry for every value up to the largest

Mask = NDArray[np.bool_]
Distances = NDArray[np.floating]


def _crop_to_masks(*masks: Mask) -> tuple[Mask, ...]:
    """Crop masks to the smallest box that holds them all."""
    union = np.logical_or.reduce(masks)
    axes = range(union.ndim)
    occupied = [np.flatnonzero(union.any(tuple({*axes} - {k}))) for k in axes]
    box = tuple(slice(along[0], along[-1] + 1) for along in occupied)
    return tuple(mask[box] for mask in masks)


def find_label_boxes(
    fixed: NDArray[np.integer], warped: NDArray[np.integer], labels: Iterable[int]
) -> dict[int, tuple[slice, ...]]:
    """Return the smallest box that holds each label in both volumes.

    The box of a label that one of them lacks is the whole grid.
    """
    whole = (slice(None),) * fixed.ndim
    boxes = [_find_boxes(volume) for volume in (fixed, warped)]

    def join_boxes(label: int) -> tuple[slice, ...]:
        pair = [volume_boxes.get(label) for volume_boxes in boxes]
        if pair[0] is None or pair[1] is None:
            return whole
        return tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop))
            for a, b in zip(pair[0], pair[1], strict=True)
        )

    return {label: join_boxes(label) for label in labels}


def _find_boxes(volume: NDArray[np.integer]) -> dict[int, tuple[slice, ...] | None]:
    """Return the smallest box that holds each label, which may be any positive number."""
    if volume.max() <= MAX_CONSECUTIVE_LABEL:
        return dict(enumerate(find_objects(volume), start=1))
    values, indices = np.unique(volume, return_inverse=True)
    boxes = find_objects(indices.reshape(volume.shape) + 1)
    return dict(zip(values.tolist(), boxes, strict=True))


def _compute_diagonal(shape: tuple[int, ...], spacing: NDArray) -> float:
    """Return the largest distance of two voxels of a grid, in the unit of the spacing."""
    return float(np.linalg.norm((np.array(shape) - 1) * spacing))


def surface_distances(fixed: Mask, warped: Mask, spacing: NDArray) -> tuple[Distances, Distances]:
    """Compute the distance of each structure's surface voxels to the other's nearest one.

    A surface voxel has a face towards the outside; beyond the image is outside.

    Args:
        fixed: (*spatial), not empty.
        warped: (*spatial).  If it is empty, both distances are the grid's diagonal, the largest
            possible value.
        spacing: (D,) voxel size; the result has its unit.

    Returns:
        Distances from ``fixed`` to ``warped``, and from ``warped`` to ``fixed``.

    >>> fixed, warped = np.eye(8, dtype=bool)[[1]], np.eye(8, dtype=bool)[[4]]
    >>> surface_distances(fixed, warped, spacing=np.array([1.0, 2.0]))
    (array([6.]), array([6.]))
    """
    if not warped.any():
        diagonal = np.array([_compute_diagonal(fixed.shape, spacing)])
        return diagonal, diagonal
    surfaces = [mask & ~binary_erosion(mask) for mask in _crop_to_masks(fixed, warped)]
    points = [np.argwhere(surface) * spacing for surface in surfaces]
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) for p in points]
    return trees[1].query(points[0])[0], trees[0].query(points[1])[0]


def hausdorff95(fixed_to_warped: Distances, warped_to_fixed: Distances) -> float:
    """Return the larger directed 95th percentile of :func:`surface_distances`."""
    return float(max(np.percentile(fixed_to_warped, 95), np.percentile(warped_to_fixed, 95)))


def average_surface_distance(fixed_to_warped: Distances, warped_to_fixed: Distances) -> float:
    """Return the mean of :func:`surface_distances` over the surface voxels of both structures."""
    return float(np.concatenate([fixed_to_warped, warped_to_fixed]).mean())


def hausdorff95_learn2reg(fixed: Mask, warped: Mask) -> float:
    """Compute HD95 in voxels as the Learn2Reg evaluator does, by the same package.

    Percentiles are weighted by area; surface elements lie on the corners between voxels.  For an
    empty ``warped`` the evaluator returns infinity, or fails with NumPy 2; here the result is the
    grid's diagonal.
    """
    spacing = np.ones(fixed.ndim)
    if not warped.any():
        return _compute_diagonal(fixed.shape, spacing)
    distances = surface_distance.compute_surface_distances(fixed, warped, spacing)
    return float(surface_distance.compute_robust_hausdorff(distances, 95.0))
