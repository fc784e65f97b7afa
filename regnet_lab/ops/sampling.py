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
