"""How alike two feature maps are under every small shift, as in PWC-Net (Sun et al., CVPR 2018)."""

from collections.abc import Iterator, Sequence
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
    """:func:`cost_volume` by its definition, one product at a time: slow, and autograd keeps every
    product for the gradient.
    """
    shape = fixed.shape[2:]
    padded, fixed = _padded(moving, radius, dilation), _every(fixed, stride)
    costs = []
    for offset in offsets(len(shape), radius):
        shifted = padded
        for axis, (o, n) in enumerate(zip(offset, shape, strict=True), start=2):
            shifted = shifted.narrow(axis, dilation * (radius + o), n)
        costs.append((fixed * _every(shifted, stride)).mean(1))
    return torch.stack(costs, 1)


def _padded(image: Tensor, radius: int, dilation: int) -> Tensor:
    return F.pad(image, [radius * dilation] * 2 * (image.ndim - 2))


def _every(image: Tensor, stride: int, first: int = 2) -> Tensor:
    """View of every ``stride``-th voxel along the axes from ``first`` on."""
    for axis in range(first, image.ndim):
        image = image[(slice(None),) * axis + (slice(None, None, stride),)]
    return image


def _windows(padded: Tensor, shape: Sequence[int], stride: int, dilation: int) -> Tensor:
    """View (*offsets, B, C, *out) of a padded map: what every offset brings to every x."""
    for axis, n in enumerate(shape, start=2):
        padded = padded.unfold(axis, n, dilation)  # in the end (B, C, *offsets, *spatial)
    ndim = len(shape)
    return _every(padded.movedim((0, 1), (ndim, ndim + 1)), stride, ndim + 2)


class _CostVolume(torch.autograd.Function):
    """Products are added up in place, over windows that are views of one padded map."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, radius: int, stride: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.numbers = radius, stride, dilation
        ndim, channels, side = fixed.ndim - 2, fixed.shape[1], 2 * radius + 1
        windows = _windows(_padded(moving, radius, dilation), fixed.shape[2:], stride, dilation)
        seen = _every(fixed, stride)
        cost = seen.new_zeros(*[side] * ndim, len(seen), *seen.shape[2:])
        for i, c in product(range(side), range(channels)):  # a slab of offsets stays in the cache
            cost[i].addcmul_(seen[:, c], windows[i].select(ndim, c), value=1 / channels)
        return cost.flatten(0, ndim - 1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        fixed, moving = ctx.saved_tensors
        radius, stride, dilation = ctx.numbers
        shape, share = fixed.shape[2:], 1 / fixed.shape[1]
        padded = _padded(moving, radius, dilation)
        to_fixed, to_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        seen, to_seen = (_every(x, stride) for x in (fixed, to_fixed))
        given, taken = (_windows(x, shape, stride, dilation) for x in (padded, to_padded))
        for o, at in enumerate(product(range(2 * radius + 1), repeat=len(shape))):
            here = slope[:, o : o + 1]
            to_seen.addcmul_(here, given[at], value=share)
            taken[at].addcmul_(here, seen, value=share)
        for axis, n in enumerate(shape, start=2):
            to_padded = to_padded.narrow(axis, radius * dilation, n)
        return to_fixed, to_padded, None, None, None
