"""Displacement-field algebra in D dimensions: the only place that knows about sampling grids.

A displacement ``u`` has shape (B, D, *spatial), is measured in voxels of its own grid, and its
channel k moves along array axis k.  It pulls back: ``warp(m, u)(x) = m(x + u(x))``, and points of
the fixed grid go the same way, ``x_moving = x + u(x)``.  A voxel is a cell of width one whose
centre has the voxel's index as coordinate, so a grid of n voxels covers [-1/2, n - 1/2].
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from itertools import product
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

Image = Float[Tensor, "b c *spatial"]
Field = Float[Tensor, "b d *spatial"]

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` in float32 at least, also under autocast: half-precision coordinates cost
    up to 0.19 voxel on a grid of 192 (bfloat16), and window variances overflow float16.
    """

    def lift(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return value

    @wraps(function)
    def lifted(*args: P.args, **kwargs: P.kwargs) -> R:
        given = (*args, *kwargs.values())
        device = next(a.device.type for a in given if isinstance(a, Tensor))
        active = torch.is_autocast_enabled(device)  # else nothing of it in exported graphs
        with torch.autocast(device, enabled=False) if active else nullcontext():
            return function(*map(lift, args), **{k: lift(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return lifted


def identity_grid(shape: Sequence[int], like: Tensor) -> Float[Tensor, "1 d *spatial"]:
    """Voxel coordinates of every point of a grid, with the precision and device of ``like``."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def _per_axis(values: Sequence[float | int], like: Tensor) -> Tensor:
    """One number for each axis, shaped (1, D, 1, ..., 1) to multiply a field."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(
        1, -1, *[1] * (like.ndim - 2)
    )


def _in_fixed_order(points: Tensor) -> bool:
    """Whether sums are to be made in a fixed order where grid_sample's backward has none."""
    return points.is_cuda and torch.are_deterministic_algorithms_enabled()


def _sampled(image: Tensor, points: Tensor, padding: str) -> Tensor:
    """What grid_sample gives, from single voxels, whose gradients are added up in a fixed order
    where PyTorch is asked for deterministic algorithms; its own backward has none on CUDA.
    """
    batch, channels, *shape = image.shape
    if padding == "border":
        last = _per_axis(shape, points) - 1
        inside = (points > 0) & (points < last)
        points = torch.where(inside, points, points.detach().clamp(min=0).minimum(last))
    floor = points.detach().floor()
    ahead = points - floor  # (B, D, *out) way to the next voxel
    voxels, total = image.flatten(2), image.new_zeros(())
    for corner in product((0, 1), repeat=len(shape)):
        steps = _per_axis(corner, points)
        weight = (steps * ahead + (1 - steps) * (1 - ahead)).prod(1, keepdim=True)
        index, valid = _flat(floor.long() + steps.long(), shape)
        values = voxels.gather(2, index.flatten(2).expand(batch, channels, -1))
        total = total + values.view(batch, channels, *points.shape[2:]) * (weight * valid)
    return total


def _flat(cell: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Number (B, 1, *out) of a voxel (B, D, *out), of the nearest outside, and whether inside."""
    inside = torch.ones_like(cell[:, :1], dtype=torch.bool)
    index = torch.zeros_like(cell[:, :1])
    for axis, n in enumerate(shape):
        along = cell[:, axis : axis + 1]
        inside &= (along >= 0) & (along < n)
        index = index * n + along.clamp(0, n - 1)
    return index, inside


def _slabs(image: Tensor, grid: Tensor) -> int:
    """Into how many equal slabs an output is cut: grid_sample in 3D on a CPU gives every thread
    cases of its own, so that one case would keep one thread busy.
    """
    threads = torch.get_num_threads()
    splits = grid.ndim == 5 and len(image) == 1 and image.device.type == "cpu" and threads > 1
    if not splits or image.requires_grad or torch.compiler.is_exporting():
        return 1  # each slab would have a gradient to the whole image of its own
    return next((k for k in range(threads, 4 * threads) if grid.shape[1] % k == 0), 1)


def _interpolate(image: Tensor, unit: Sequence[Tensor], padding: str) -> Tensor:
    """Linear interpolation at coordinates (B, *out) of each axis, whose cells fill [-1, 1]."""
    grid = torch.stack([*unit][::-1], 1).movedim(1, -1)  # grid_sample wants the last axis first
    slabs = _slabs(image, grid)
    if slabs > 1:
        grid = grid[0].unflatten(0, (slabs, -1))
        image = image.expand(slabs, *image.shape[1:])
    out = F.grid_sample(image, grid.to(image.dtype), "bilinear", padding, align_corners=False)
    return out.transpose(0, 1).flatten(1, 2)[None] if slabs > 1 else out


@full_precision
def _warp_linear(image: Tensor, u: Tensor, padding: str) -> Tensor:
    """:func:`sample` at x + u(x), which is nowhere written down."""
    unit = []
    for axis, (along, n) in enumerate(zip(u.unbind(1), image.shape[2:], strict=True)):
        centres = (2 * torch.arange(u.shape[2 + axis], dtype=u.dtype, device=u.device) + 1) / n - 1
        line = centres.view(-1, *[1] * (u.ndim - 3 - axis))
        unit.append(torch.add(line, along, alpha=2 / n))
    return _interpolate(image, unit, padding)


@full_precision
def sample(
    image: Image, points: Float[Tensor, "b d *out"], padding: str = "border"
) -> Float[Tensor, "b c *out"]:
    """Linear interpolation of ``image`` at voxel coordinates.

    Args:
        image: (B, C, *spatial).
        points: (B, D, *out) voxel coordinates, channel k along image axis k.
        padding: What lies outside: ``border`` (the nearest voxel) or ``zeros``.

    Returns:
        (B, C, *out).
    """
    if _in_fixed_order(points):
        return _sampled(image, points.to(image.dtype), padding)
    along = zip(points.unbind(1), image.shape[2:], strict=True)
    return _interpolate(image, [(2 * p + 1) / n - 1 for p, n in along], padding)


def sample_nearest(
    image: Shaped[Tensor, "b c *spatial"],
    points: Float[Tensor, "b d *out"],
    padding: str = "border",
) -> Shaped[Tensor, "b c *out"]:
    """Value of the voxel whose cell holds each point; exact for any dtype, no gradient.

    Arguments as in :func:`sample`; halves round up, floor(x + 1/2), as scipy does at order 0.
    """
    batch, channels, *shape = image.shape
    index, inside = _flat(torch.floor(points.detach() + 0.5).long(), shape)
    values = image.flatten(2).gather(2, index.flatten(2).expand(batch, channels, -1))
    values = values.view(batch, channels, *points.shape[2:])
    return values if padding == "border" else values * inside


def warp(
    image: Shaped[Tensor, "b c *spatial"],
    u: Float[Tensor, "b d *out"],
    mode: str = "linear",
    padding: str = "border",
) -> Shaped[Tensor, "b c *out"]:
    """The image seen through a displacement: w(x) = image(x + u(x)).

    Args:
        image: (B, C, *spatial), the moving image or its labels.
        u: (B, D, *grid) displacement in voxels; the result lies on its grid.
        mode: ``linear`` or ``nearest`` (labels).
        padding: ``border`` or ``zeros`` outside the image.
    """
    if mode == "linear" and not _in_fixed_order(u):
        return _warp_linear(image, u, padding)
    points = identity_grid(u.shape[2:], u.float() if u.dtype.itemsize < 4 else u) + u
    return (sample if mode == "linear" else sample_nearest)(image, points, padding)


def sample_at(
    image: Image, points: Float[Tensor, "b n d"], padding: str = "border"
) -> Float[Tensor, "b n c"]:
    """Linear interpolation at a list of points (B, N, D) in voxels; gives (B, N, C)."""
    batch, count, ndim = points.shape
    listed = points.transpose(1, 2).reshape(batch, ndim, count, *[1] * (ndim - 1))
    return sample(image, listed, padding).flatten(2).transpose(1, 2)


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


def _resampling(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """Weights that carry an axis of ``old`` cells to ``new`` ones of the same total length.

    Down: each new cell is the average of the old ones it covers.  Up: linear interpolation
    between old centres, constant beyond the outermost.
    """
    ratio = old / new
    cells = torch.arange(old, dtype=like.dtype, device=like.device)
    edge = torch.arange(new, dtype=like.dtype, device=like.device)[:, None] * ratio
    if new < old:
        overlap = torch.minimum(edge + ratio, cells + 1) - torch.maximum(edge, cells)
        return overlap.clamp(min=0) / ratio
    centre = (edge + ratio / 2 - 0.5).clamp(0, old - 1)
    return (1 - (centre - cells).abs()).clamp(min=0)


@full_precision
def resize(image: Image, shape: Sequence[int]) -> Float[Tensor, "b c *out"]:
    """The same field of view on another grid: cell averages going down, linear going up."""
    for axis, (old, new) in enumerate(zip(image.shape[2:], shape, strict=True), start=2):
        if old != new:
            image = (image.movedim(axis, -1) @ _resampling(old, new, image).T).movedim(-1, axis)
    return image


def resize_nearest(labels: Shaped[Tensor, "b c *spatial"], shape: Sequence[int]) -> Tensor:
    """The same field of view on another grid, every new centre taking the cell it falls in."""
    for axis, (old, new) in enumerate(zip(labels.shape[2:], shape, strict=True), start=2):
        index = ((torch.arange(new, device=labels.device) + 0.5) * old / new).long()
        labels = labels.index_select(axis, index)
    return labels


@full_precision
def resize_field(u: Field, shape: Sequence[int]) -> Float[Tensor, "b d *out"]:
    """Carry a displacement to another grid and express it in that grid's voxels."""
    factor = [new / old for new, old in zip(shape, u.shape[2:], strict=True)]
    return resize(u, shape) * _per_axis(factor, u)


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
