"""Compose, integrate, invert and differentiate displacement fields; affine displacement fields."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regnet_lab.ops.sampling import Field, Image, full_precision, identity_grid, sample_at, warp


@full_precision
def compose(first: Field, then: Field) -> Field:
    """Displacement w of one map after another: id + w = (id + then) o (id + first).

    w(x) = first(x) + then(x + first(x)), so warp(m, w) = warp(warp(m, then), first).
    """
    return first + warp(then, first)


@full_precision
def integrate(velocity: Field, steps: int = 7) -> Field:
    """Flow at time one of a stationary velocity field: exp(v) = (exp(v / 2^steps))^(2^steps).

    Scaling and squaring (Arsigny et al., MICCAI 2006); voxels in, voxels out.
    """
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u)
    return u


@full_precision
def invert(u: Field, iterations: int = 30, tolerance: float = 1e-4) -> Field:
    """Displacement v with (id + u) o (id + v) = id, without a gradient.

    Voxel by voxel: first the fixed point v <- -u(x + v) (Chen et al., Med. Phys. 2008), which is
    cheap but fails where u changes by more than a voxel per voxel, long before anything folds;
    then Levenberg and Marquardt's method for r(v) = v + u(x + v) = 0 with the Jacobian I + du/dx
    at x + v: v <- v - (J^T J + l)^-1 J^T r, l falling where that makes |r| smaller and rising
    elsewhere.  A step is taken only where it makes |r| smaller.

    A voxel rests when its |r| is not above ``tolerance``, voxels; ``compose(v, u)`` is r, and
    stays above it where a map folds, or comes from outside the grid.
    """
    return torch.cat([_inverse(case, iterations, tolerance) for case in u.detach().split(1)])


SWEEPS = 4  # of the fixed point


def _inverse(u: Field, iterations: int, tolerance: float) -> Field:
    """:func:`invert` of one case; only voxels that do not rest are looked at."""
    ndim, eye = u.shape[1], torch.eye(u.shape[1]).to(u)
    slopes = gradient(u).flatten(1, 2)
    x = identity_grid(u.shape[2:], u).flatten(2).mT  # (1, N, D), as all below
    v = -u.flatten(2).mT
    r, damping = v + sample_at(u, x + v), torch.full_like(v[..., :1], 1e-3)
    left = torch.arange(x.shape[1], device=u.device)
    for turn in range(iterations):
        left = left[r[0, left].norm(dim=1) > tolerance]
        if not len(left):
            break
        old, off, soft = v[:, left], r[:, left], damping[:, left]
        step = off
        if turn >= SWEEPS:
            jacobian = sample_at(slopes, x[:, left] + old).unflatten(-1, (ndim, ndim)) + eye
            normal = jacobian.mT @ jacobian + soft[..., None] * eye
            step = torch.linalg.solve(normal, jacobian.mT @ off[..., None])[..., 0]
        tried = old - step
        missed = tried + sample_at(u, x[:, left] + tried)
        better = missed.norm(dim=-1, keepdim=True) < off.norm(dim=-1, keepdim=True)
        v[:, left], r[:, left] = torch.where(better, tried, old), torch.where(better, missed, off)
        if turn >= SWEEPS:
            damping[:, left] = torch.where(better, soft / 4, soft * 8).clamp(1e-7, 1e7)
    return v.mT.reshape(u.shape)


def gradient(x: Image) -> Float[Tensor, "b c d *spatial"]:
    """Central differences (x[i+1] - x[i-1]) / 2 along every axis, one-sided at the border."""
    return torch.stack(torch.gradient(x, dim=list(range(2, x.ndim))), dim=2)


def forward_difference(x: Image) -> Float[Tensor, "b c d *inner"]:
    """x[i+1] - x[i] along every axis, on the grid without each axis's last voxel."""
    axes = range(2, x.ndim)

    def inner(y: Tensor, skip: int = 0) -> Tensor:
        for axis in axes:
            y = y if axis == skip else y.narrow(axis, 0, x.shape[axis] - 1)
        return y

    return torch.stack([inner(x.diff(dim=axis), skip=axis) for axis in axes], dim=2)


def determinant(matrix: Float[Tensor, "b d e *spatial"]) -> Float[Tensor, "b *spatial"]:
    """Determinant of a field of D x D matrices, by Laplace's expansion along the first row."""

    def minor(columns: list[int]) -> Tensor:
        """That of the last rows in as many columns."""
        row = matrix[:, matrix.shape[1] - len(columns)]
        total = row[:, columns[0]]
        if len(columns) == 1:
            return total
        total = total * minor(columns[1:])
        for k, column in enumerate(columns[1:], start=1):
            rest = row[:, column] * minor(columns[:k] + columns[k + 1 :])
            total = total - rest if k % 2 else total + rest
        return total

    return minor(list(range(matrix.shape[2])))


@full_precision
def jacobian_determinant(u: Field, scheme: str = "central") -> Float[Tensor, "b *inner"]:
    """det(I + du/dx): local change of volume, zero or below where the map folds.

    Args:
        u: (B, D, *spatial) displacement in voxels of its grid.
        scheme: ``central`` differences, on the whole grid, or ``forward`` ones, on the grid
            without each axis's last voxel; central ones cannot see a fold one voxel wide.
    """
    slope = {"central": gradient, "forward": forward_difference}[scheme](u)
    unit = torch.eye(u.shape[1], dtype=slope.dtype, device=slope.device)
    return determinant(slope + unit.view(1, *unit.shape, *[1] * (u.ndim - 2)))


@full_precision
def transform_points(
    matrix: Float[Tensor, "*b e e"], points: Float[Tensor, "*b n d"]
) -> Float[Tensor, "*b n d"]:
    """Apply a homogeneous (D+1, D+1) matrix, such as world-to-voxel, to points (..., N, D)."""
    return points @ matrix[..., :-1, :-1].mT + matrix[..., None, :-1, -1]


def affine_field(matrix: Float[Tensor, "b e e"], shape: Sequence[int]) -> Field:
    """Displacement u(x) = A x + t - x of a voxel-to-voxel affine map on a grid of ``shape``."""
    x = identity_grid(shape, matrix)
    moved = transform_points(matrix, x.flatten(2).transpose(1, 2).expand(len(matrix), -1, -1))
    return moved.transpose(1, 2).view(len(matrix), -1, *shape) - x
