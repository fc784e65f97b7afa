"""Smoothness and folding of a displacement, from its Jacobian determinant."""

from collections.abc import Callable
from itertools import product
from math import factorial, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import ops

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

MARGIN = 2  # voxels at each face that Learn2Reg leaves out
SLAB_VOXELS = 2**17  # computed at a time, few enough for the cache


def _apply_in_slabs(function: Callable[[Tensor], Tensor], u: Array, reach: int) -> Array:
    """Apply a function to a field slab by slab along the first axis, to use the cache.

    ``function`` maps (1, D, *spatial) to a grid with ``reach`` voxels less along each axis; the
    result is empty if an axis has ``reach`` voxels or fewer.
    """
    field = torch.from_numpy(u)[None]
    shape = [max(n - reach, 0) for n in u.shape[1:]]
    if 0 in shape:
        return np.empty(shape)
    layers = max(4, SLAB_VOXELS * shape[0] // prod(shape))
    starts = range(0, shape[0], layers)
    return torch.cat([function(field[:, :, i : i + layers + reach]) for i in starts]).numpy()


def _compute_interior_determinant(u: Tensor) -> Tensor:
    """Compute the Jacobian determinant of (1, D, *spatial) inside the margin only."""
    ndim, half_u = u.shape[1], u / 2
    inner = [n - 2 * MARGIN for n in u.shape[2:]]
    slope = u.new_empty(1, ndim, ndim, *inner)

    def shift_inner(along: int, step: int) -> Tensor:
        shifted = half_u
        for axis, n in enumerate(inner):
            shifted = shifted.narrow(axis + 2, MARGIN + step * (axis == along), n)
        return shifted

    for axis in range(ndim):
        torch.sub(shift_inner(axis, 1), shift_inner(axis, -1), out=slope[:, :, axis])
        slope[:, axis, axis] += 1
    return ops.determinant(slope)[0]


def interior_determinant(u: Array, mask: Mask | None = None) -> Array:
    """Compute det(I + du/dx) by central differences at the voxels that Learn2Reg counts.

    Args:
        u: (D, *spatial) displacement, voxels.
        mask: (*spatial) voxels to count; null: all.

    Returns:
        (N,) determinants at the voxels (of the mask) at least two voxels inside the border.

    >>> u = np.stack(np.meshgrid(*[0.1 * np.arange(6.0)] * 2, indexing="ij"))
    >>> interior_determinant(u).round(4)
    array([1.21, 1.21, 1.21, 1.21])
    """
    determinant = _apply_in_slabs(_compute_interior_determinant, u, reach=2 * MARGIN)
    if mask is None:
        return determinant.ravel()
    return determinant[mask[(slice(MARGIN, -MARGIN),) * mask.ndim]]


def sdlogj(determinant: Array, offset: float = 3.0) -> float:
    """Compute the standard deviation of log(clip(det + offset, 1e-9, 1e9)); NaN without voxels.

    Learn2Reg's evaluator adds 3, which hides folds and lowers the value; an offset of 0 gives the
    SDlogJ its papers define.

    >>> round(sdlogj(np.array([0.5, 1.0, 2.0]), offset=0.0), 4)
    0.566
    """
    if not determinant.size:
        return np.nan
    return float(np.log(np.clip(determinant + offset, 1e-9, 1e9)).std())


def folds_percent(determinant: Array) -> float:
    """Compute the percentage of voxels with determinant <= 0; NaN without voxels.

    Learn2Reg's evaluator counts after adding 3 and clipping, and so always finds none.

    >>> folds_percent(np.array([1.0, 0.8, -0.1, 1.2]))
    25.0
    """
    return float(100 * np.mean(~(determinant > 0))) if determinant.size else np.nan


def _list_cell_simplices(ndim: int) -> list[NDArray]:
    """Return the simplices (D+1 vertices, D) of both mirror-image splits of a unit cell.

    Cutting off every other corner leaves nothing of a square and a tetrahedron of a cube; the other
    half of the corners gives the mirror image.
    """
    corners = np.array(list(product((0, 1), repeat=ndim)))
    tips = [np.vstack([c, c ^ np.eye(ndim, dtype=int)]) for c in corners]
    halves = [corners[corners.sum(1) % 2 == parity] for parity in (0, 1)]
    return tips + [alternate for alternate in halves if len(alternate) == ndim + 1]


def _take_corner(grid: Tensor, corner: NDArray) -> Tensor:
    """Return the value at one corner of every cell: (..., *spatial) to (..., *cells)."""
    for axis, offset in enumerate(corner.tolist(), start=grid.ndim - len(corner)):
        grid = grid.narrow(axis, offset, grid.shape[axis] - 1)
    return grid


def _compute_inverted_volume(u: Tensor) -> Tensor:
    """Return each cell's volume of inverted simplices, the mean of the two splits."""
    ndim = u.shape[1]
    position = ops.identity_grid(u.shape[2:], u) + u
    total = torch.zeros(())
    for vertices in _list_cell_simplices(ndim):
        origin, *others = [_take_corner(position, corner) for corner in vertices]
        volume = ops.determinant(torch.stack([p - origin for p in others], dim=1))[0]
        orientation = np.sign(np.linalg.det(vertices[1:] - vertices[0]))
        total = total + (-orientation * volume).clamp(min=0)
    return total / factorial(ndim) / 2


def ndv_percent(u: Array, mask: Mask | None = None) -> float:
    r"""Compute the non-diffeomorphic volume in percent (Liu et al., arXiv 2212.06060).

    NDV = 100 / |cells| * sum of max(-V(s), 0) / 2 over all simplices s.  The cells between voxel
    centres are split into simplices in two mirror-image ways; the map is linear on each, and V is
    the signed volume of a mapped simplex.  Zero means that the map folds nowhere, even between
    voxels, where central differences miss folds.

    Args:
        u: (D, *spatial) displacement in 2D or 3D, voxels.
        mask: (*spatial) count only cells with all corners in the mask; null: all cells.
    """
    inverted = _apply_in_slabs(_compute_inverted_volume, u, reach=1)
    if mask is not None and inverted.size:
        corners = product((0, 1), repeat=mask.ndim)
        inside = [_take_corner(torch.from_numpy(mask), np.array(corner)) for corner in corners]
        inverted = inverted[torch.stack(inside).all(0).numpy()]
    return float(100 * inverted.mean()) if inverted.size else np.nan
