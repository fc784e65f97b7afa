"""Sampling of images at voxel coordinates: linear and nearest-neighbour interpolation, warping."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from regnet_lab.ops.precision import full_precision

Image = Float[Tensor, "b c *spatial"]
Field = Float[Tensor, "b d *spatial"]


def identity_grid(shape: Sequence[int], like: Tensor) -> Float[Tensor, "1 d *spatial"]:
    """Return the voxel coordinates of every point of a grid, (1, D, *shape).

    Precision and device are those of ``like``.

    >>> identity_grid((2, 3), torch.zeros(1))[0, 1]
    tensor([[0., 1., 2.],
            [0., 1., 2.]])
    """
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def _expand_per_axis(values: Sequence[float | int], like: Tensor) -> Tensor:
    """Return one number per axis as (1, D, 1, ..., 1), which broadcasts over a field."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device).view(
        1, -1, *[1] * (like.ndim - 2)
    )


def _needs_deterministic_backward(points: Tensor) -> bool:
    """Check whether determinism is required where the backward pass of grid_sample has none."""
    return points.is_cuda and torch.are_deterministic_algorithms_enabled()


def _sample_deterministically(image: Tensor, points: Tensor, padding: str) -> Tensor:
    """Interpolate linearly like grid_sample, by gathering voxels.

    With deterministic algorithms PyTorch adds the gradients of a gather in a fixed order; the
    backward pass of grid_sample on CUDA has no deterministic form.
    """
    batch, channels, *shape = image.shape
    if padding == "border":
        last = _expand_per_axis(shape, points) - 1
        inside = (points > 0) & (points < last)
        points = torch.where(inside, points, points.detach().clamp(min=0).minimum(last))
    floor = points.detach().floor()
    fraction = points - floor  # (B, D, *out)
    voxels, total = image.flatten(2), image.new_zeros(())
    for corner in product((0, 1), repeat=len(shape)):
        steps = _expand_per_axis(corner, points)
        weight = (steps * fraction + (1 - steps) * (1 - fraction)).prod(1, keepdim=True)
        index, valid = _flatten_index(floor.long() + steps.long(), shape)
        values = voxels.gather(2, index.flatten(2).expand(batch, channels, -1))
        total = total + values.view(batch, channels, *points.shape[2:]) * (weight * valid)
    return total


def _flatten_index(cell: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the flat index (B, 1, *out) of voxels (B, D, *out), and whether they are inside.

    Voxels outside the image get the index of the nearest one inside.
    """
    inside = torch.ones_like(cell[:, :1], dtype=torch.bool)
    index = torch.zeros_like(cell[:, :1])
    for axis, n in enumerate(shape):
        position = cell[:, axis : axis + 1]
        inside &= (position >= 0) & (position < n)
        index = index * n + position.clamp(0, n - 1)
    return index, inside


def _count_slabs(image: Tensor, grid: Tensor) -> int:
    """Return the number of equal slabs to cut an output into for several threads.

    In 3D on a CPU grid_sample distributes the cases of a batch over threads, so a batch of one
    would use one thread.
    """
    threads = torch.get_num_threads()
    splits = grid.ndim == 5 and len(image) == 1 and image.device.type == "cpu" and threads > 1
    if not splits or image.requires_grad or torch.compiler.is_exporting():
        return 1  # each slab would need its own gradient of the whole image
    return next((k for k in range(threads, 4 * threads) if grid.shape[1] % k == 0), 1)


def _interpolate(image: Tensor, unit: Sequence[Tensor], padding: str) -> Tensor:
    """Interpolate linearly at coordinates (B, *out) per axis, in which the cells fill [-1, 1]."""
    grid = torch.stack([*unit][::-1], 1).movedim(1, -1)  # grid_sample wants the last axis first
    slabs = _count_slabs(image, grid)
    if slabs > 1:
        grid = grid[0].unflatten(0, (slabs, -1))
        image = image.expand(slabs, *image.shape[1:])
    out = F.grid_sample(image, grid.to(image.dtype), "bilinear", padding, align_corners=False)
    return out.transpose(0, 1).flatten(1, 2)[None] if slabs > 1 else out


@full_precision
def _warp_linear(image: Tensor, u: Tensor, padding: str) -> Tensor:
    """Sample at x + u(x) without storing x + u(x)."""
    unit = []
    for axis, (component, n) in enumerate(zip(u.unbind(1), image.shape[2:], strict=True)):
        centers = (2 * torch.arange(u.shape[2 + axis], dtype=u.dtype, device=u.device) + 1) / n - 1
        line = centers.view(-1, *[1] * (u.ndim - 3 - axis))
        unit.append(torch.add(line, component, alpha=2 / n))
    return _interpolate(image, unit, padding)


@full_precision
def sample(
    image: Image, points: Float[Tensor, "b d *out"], padding: str = "border"
) -> Float[Tensor, "b c *out"]:
    """Interpolate ``image`` linearly at voxel coordinates, channel k along image axis k.

    Padding is the value outside the image: ``border`` (the nearest voxel) or ``zeros``.

    >>> image = torch.tensor([[[[0.0, 10.0], [20.0, 30.0]]]])
    >>> sample(image, torch.tensor([0.5, 0.25]).view(1, 2, 1, 1)).item()
    12.5
    """
    if _needs_deterministic_backward(points):
        return _sample_deterministically(image, points.to(image.dtype), padding)
    axes = zip(points.unbind(1), image.shape[2:], strict=True)
    return _interpolate(image, [(2 * p + 1) / n - 1 for p, n in axes], padding)


def sample_nearest(
    image: Shaped[Tensor, "b c *spatial"],
    points: Float[Tensor, "b d *out"],
    padding: str = "border",
) -> Shaped[Tensor, "b c *out"]:
    """Return the value of the voxel whose cell contains each point, exact for any dtype.

    Arguments as in :func:`sample`.  Halves round up, floor(x + 1/2), as in scipy at order 0; there
    is no gradient.
    """
    batch, channels, *shape = image.shape
    index, inside = _flatten_index(torch.floor(points.detach() + 0.5).long(), shape)
    values = image.flatten(2).gather(2, index.flatten(2).expand(batch, channels, -1))
    values = values.view(batch, channels, *points.shape[2:])
    return values if padding == "border" else values * inside


def warp(
    image: Shaped[Tensor, "b c *spatial"],
    u: Float[Tensor, "b d *out"],
    mode: str = "linear",
    padding: str = "border",
) -> Shaped[Tensor, "b c *out"]:
    """Warp an image by a displacement field in voxels, to its grid: w(x) = image(x + u(x)).

    The mode is ``linear``, or ``nearest`` for labels; padding as in :func:`sample`.

    >>> image = torch.arange(6.0).view(1, 1, 2, 3)
    >>> u = torch.zeros(1, 2, 2, 3)
    >>> u[:, 1] = 0.5  # half a voxel along the last axis
    >>> warp(image, u)
    tensor([[[[0.5000, 1.5000, 2.0000],
              [3.5000, 4.5000, 5.0000]]]])
    """
    if mode == "linear" and not _needs_deterministic_backward(u):
        return _warp_linear(image, u, padding)
    points = identity_grid(u.shape[2:], u.float() if u.dtype.itemsize < 4 else u) + u
    return (sample if mode == "linear" else sample_nearest)(image, points, padding)


def sample_at(
    image: Image, points: Float[Tensor, "b n d"], padding: str = "border"
) -> Float[Tensor, "b n c"]:
    """Interpolate an image linearly at a list of points (B, N, D) in voxels, to (B, N, C)."""
    batch, count, ndim = points.shape
    listed = points.transpose(1, 2).reshape(batch, ndim, count, *[1] * (ndim - 1))
    return sample(image, listed, padding).flatten(2).transpose(1, 2)
