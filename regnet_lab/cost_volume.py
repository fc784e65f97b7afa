"""How alike two feature maps are under every small shift, as in PWC-Net (Sun et al., CVPR 2018)."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regnet_lab import ops


def offsets(ndim: int, radius: int) -> Iterator[tuple[int, ...]]:
    """Every D-tuple of whole numbers from -radius to radius, the last one running fastest."""
    return product(range(-radius, radius + 1), repeat=ndim)


@ops.full_precision
def cost_volume(
    fixed: Tensor, moving: Tensor, radius: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """cost_o(x) = mean_c fixed_c(x) moving_c(x + dilation o), o in {-radius, ..., radius}^D.

    Beyond its border ``moving`` is zero.  Nothing of size offsets x channels is stored, neither
    forward nor backward: memory beside inputs, output and their gradients is one padded copy of
    ``moving`` and of its gradient.  Differentiable once.

    Args:
        fixed: (B, C, *spatial).
        moving: The same shape.
        radius: Largest offset along every axis.
        stride: Of the voxels x at which the costs are taken.
        dilation: Voxels between neighbouring offsets.

    Returns:
        (B, (2 radius + 1)^D, *ceil(spatial / stride)), offsets in the order of :func:`offsets`.
    """
    return _CostVolume.apply(fixed, moving, radius, stride, dilation)


def reference(
    fixed: Tensor, moving: Tensor, radius: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """:func:`cost_volume` by its definition, one product at a time: slow, and with autograd's
    gradient it keeps every product.
    """
    shape = fixed.shape[2:]
    padded = _padded(moving, radius, dilation)
    costs = []
    for offset in offsets(len(shape), radius):
        first = [dilation * (o + radius) for o in offset]
        at = tuple(slice(i, i + n) for i, n in zip(first, shape, strict=True))
        costs.append((fixed * padded[(..., *at)]).mean(1))
    return _thinned(torch.stack(costs, 1), stride)


def _padded(image: Tensor, radius: int, dilation: int) -> Tensor:
    return F.pad(image, [radius * dilation] * 2 * (image.ndim - 2))


def _thinned(image: Tensor, stride: int) -> Tensor:
    """View of every ``stride``-th voxel along every axis."""
    return image[(..., *[slice(None, None, stride)] * (image.ndim - 2))]


def _windows(padded: Tensor, shape: tuple[int, ...], stride: int, dilation: int) -> Tensor:
    """View (B, C, *offsets, *out) of a padded map: for every offset the voxels that meet x."""
    for axis, n in enumerate(shape, start=2):
        padded = padded.unfold(axis, n, dilation)
    return padded[(..., *[slice(None, None, stride)] * len(shape))]


class _CostVolume(torch.autograd.Function):
    """Products are added up in place, over windows that are views of one padded map."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, radius: int, stride: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.numbers = radius, stride, dilation
        shape, channels = fixed.shape[2:], fixed.shape[1]
        ndim, side = len(shape), 2 * radius + 1
        windows = _windows(_padded(moving, radius, dilation), shape, stride, dilation)
        seen = _thinned(fixed, stride)
        cost = seen.new_zeros(len(seen), *[side] * ndim, *seen.shape[2:])
        for i, c in product(range(side), range(channels)):  # a slab of offsets stays in the cache
            here = seen[(slice(None), c, *[None] * (ndim - 1))]
            cost[:, i].addcmul_(here, windows[:, c, i], value=1 / channels)
        return cost.flatten(1, ndim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        fixed, moving = ctx.saved_tensors
        radius, stride, dilation = ctx.numbers
        shape = fixed.shape[2:]
        padded = _padded(moving, radius, dilation)
        to_fixed, to_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        seen, to_seen = (_thinned(x, stride) for x in (fixed, to_fixed))
        given, taken = (_windows(x, shape, stride, dilation) for x in (padded, to_padded))
        share = 1 / fixed.shape[1]
        for o, k in enumerate(product(range(2 * radius + 1), repeat=len(shape))):
            here = slope[:, o : o + 1]
            to_seen.addcmul_(here, given[(slice(None), slice(None), *k)], value=share)
            taken[(slice(None), slice(None), *k)].addcmul_(here, seen, value=share)
        reach = radius * dilation
        inner = tuple(slice(reach, reach + n) for n in shape)
        return to_fixed, to_padded[(..., *inner)], None, None, None
