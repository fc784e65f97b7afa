"""How far a displacement is from a smooth map without folds."""

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

CROP = 2  # voxels at each side, where Learn2Reg does not look
SLAB = 2**17  # voxels whose determinants are computed at a time


def _by_layers(function: Callable[[Tensor], Tensor], u: Array, reach: int) -> Array:
    """``function`` of a field, slab by slab along the first axis: what fits the cache is fast.

    Args:
        function: Takes (1, D, *spatial) to a grid that has ``reach`` voxels less along each axis.
        u: (D, *spatial).
        reach: See above.

    Returns:
        Its answer on the whole grid, which is empty if an axis has ``reach`` voxels or fewer.
    """
    field = torch.from_numpy(u)[None]
    shape = [max(n - reach, 0) for n in u.shape[1:]]
    if 0 in shape:
        return np.empty(shape)
    layers = max(4, SLAB * shape[0] // prod(shape))
    starts = range(0, shape[0], layers)
    return torch.cat([function(field[:, :, i : i + layers + reach]) for i in starts]).numpy()


def _cropped_determinant(u: Tensor) -> Tensor:
    """ops.jacobian_determinant of (1, D, *spatial), but computed only where it is wanted."""
    ndim, half = u.shape[1], u / 2
    inner = [n - 2 * CROP for n in u.shape[2:]]
    slope = u.new_empty(1, ndim, ndim, *inner)

    def beside(along: int, step: int) -> Tensor:
        part = half
        for axis, n in enumerate(inner):
            part = part.narrow(axis + 2, CROP + step * (axis == along), n)
        return part

    for axis in range(ndim):
        torch.sub(beside(axis, 1), beside(axis, -1), out=slope[:, :, axis])
        slope[:, axis, axis] += 1
    return ops.determinant(slope)[0]


def interior_determinant(u: Array, mask: Mask | None = None) -> Array:
    """det(I + du/dx) by central differences at the voxels Learn2Reg looks at.

    Args:
        u: (D, *spatial) displacement, voxels.
        mask: (*spatial) where to look; everywhere if there is none.

    Returns:
        (N,) one number for each voxel (of the mask) two or more voxels off the border.
    """
    determinant = _by_layers(_cropped_determinant, u, reach=2 * CROP)
    if mask is None:
        return determinant.ravel()
    return determinant[mask[(slice(CROP, -CROP),) * mask.ndim]]


def sdlogj(determinant: Array, offset: float = 3.0) -> float:
    """Standard deviation of log(clip(det + offset, 1e-9, 1e9)); NaN over no voxels.

    Learn2Reg's evaluator adds 3, which hides folds and damps the number; an offset of 0 gives the
    deviation its papers describe.
    """
    if not determinant.size:
        return np.nan
    return float(np.log(np.clip(determinant + offset, 1e-9, 1e9)).std())


def folds_percent(determinant: Array) -> float:
    """Share of voxels whose determinant is not positive, in percent; NaN over no voxels.

    Learn2Reg's evaluator counts after adding 3 and clipping, and so always finds none.
    """
    return float(100 * np.mean(~(determinant > 0))) if determinant.size else np.nan


def _cell_simplices(ndim: int) -> list[NDArray]:
    """Vertices (D+1, D) of the simplices that split a unit cell in its two mirror-image ways.

    Cutting off every other corner of a cell leaves nothing of a square and a tetrahedron of a
    cube; the other half of the corners gives the mirror image.
    """
    corners = np.array(list(product((0, 1), repeat=ndim)))
    tips = [np.vstack([c, c ^ np.eye(ndim, dtype=int)]) for c in corners]
    halves = [corners[corners.sum(1) % 2 == parity] for parity in (0, 1)]
    return tips + [half for half in halves if len(half) == ndim + 1]


def _at_corner(grid: Tensor, corner: NDArray) -> Tensor:
    """Value at one corner of every cell: (..., *spatial) to (..., *cells)."""
    for axis, ahead in enumerate(corner.tolist(), start=grid.ndim - len(corner)):
        grid = grid.narrow(axis, ahead, grid.shape[axis] - 1)
    return grid


def _reversed_volume(u: Tensor) -> Tensor:
    """Volume of each cell's simplices that u turns inside out, the mean of the two ways."""
    ndim = u.shape[1]
    position = ops.identity_grid(u.shape[2:], u) + u
    total = torch.zeros(())
    for vertices in _cell_simplices(ndim):
        first, *rest = [_at_corner(position, corner) for corner in vertices]
        volume = ops.determinant(torch.stack([p - first for p in rest], dim=1))[0]
        orientation = np.sign(np.linalg.det(vertices[1:] - vertices[0]))
        total = total + (-orientation * volume).clamp(min=0)
    return total / factorial(ndim) / 2


def ndv_percent(u: Array, mask: Mask | None = None) -> float:
    r"""Non-diffeomorphic volume: 100 / |cells| * sum of max(-V(s), 0) / 2 over all simplices s.

    The cells between voxel centres are split into simplices in two mirror-image ways, the map is
    linear on each, and V is the signed volume of a mapped simplex.  Zero means that the map folds
    nowhere, also between voxels where central differences see nothing (Liu et al., arXiv
    2212.06060).

    Args:
        u: (D, *spatial) displacement in 2D or 3D, voxels.
        mask: (*spatial); counts only the cells all of whose corners it holds.
    """
    folded = _by_layers(_reversed_volume, u, reach=1)
    if mask is not None and folded.size:
        corners = product((0, 1), repeat=mask.ndim)
        inside = [_at_corner(torch.from_numpy(mask), np.array(corner)) for corner in corners]
        folded = folded[torch.stack(inside).all(0).numpy()]
    return float(100 * folded.mean()) if folded.size else np.nan
