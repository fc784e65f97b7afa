"""Correlation of feature maps over a window of shifts (PWC-Net, Sun et al., CVPR 2018)."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regnet_lab.ops.precision import full_precision


def iterate_offsets(ndim: int, radius: int) -> Iterator[tuple[int, ...]]:
    """Yield every D-tuple of integers from -radius to radius, the last one varying fastest."""
    return product(range(-radius, radius + 1), repeat=ndim)


@full_precision
def cost_volume(
    fixed: Tensor, moving: Tensor, radius: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Compute the correlation of two feature maps for every shift within a radius.

    cost_o(x) = mean_c fixed_c(x) moving_c(x + dilation o) for o in {-radius, ..., radius}^D, where
    ``moving`` is zero outside.  Memory beyond inputs, output and their gradients is one padded
    copy of ``moving`` and of its gradient.  Differentiable once.

    ``stride`` is the step between the voxels x at which costs are computed.  Maps (B, C, *spatial)
    give costs (B, (2 radius + 1)^D, *ceil(spatial / stride)), ordered as by
    :func:`iterate_offsets`.

    >>> moving = torch.tensor([[[[0.0, 1.0, 0.0]]]])
    >>> fixed = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    >>> costs = cost_volume(fixed, moving, radius=1)
    >>> list(iterate_offsets(2, 1))[costs[0, :, 0, 0].argmax()]
    (0, 1)
    """
    return _CostVolume.apply(fixed, moving, radius, stride, dilation)


def compute_reference_cost_volume(
    fixed: Tensor, moving: Tensor, radius: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Compute :func:`cost_volume` by its definition: slow, and autograd keeps every product."""
    shape = fixed.shape[2:]
    padded, fixed = _pad(moving, radius, dilation), _subsample(fixed, stride)
    costs = []
    for offset in iterate_offsets(len(shape), radius):
        shifted = padded
        for axis, (o, n) in enumerate(zip(offset, shape, strict=True), start=2):
            shifted = shifted.narrow(axis, dilation * (radius + o), n)
        costs.append((fixed * _subsample(shifted, stride)).mean(1))
    return torch.stack(costs, 1)


def _pad(image: Tensor, radius: int, dilation: int) -> Tensor:
    """Pad every spatial axis with zeros for the largest offset."""
    return F.pad(image, [radius * dilation] * 2 * (image.ndim - 2))


def _subsample(image: Tensor, stride: int, first: int = 2) -> Tensor:
    """Return a view of every ``stride``-th voxel along the axes from ``first`` on."""
    for axis in range(first, image.ndim):
        image = image[(slice(None),) * axis + (slice(None, None, stride),)]
    return image


def _view_windows(padded: Tensor, shape: Sequence[int], stride: int, dilation: int) -> Tensor:
    """Return a view (*offsets, B, C, *out) of a padded map: its value at x + dilation o."""
    for axis, n in enumerate(shape, start=2):
        padded = padded.unfold(axis, n, dilation)  # finally (B, C, *offsets, *spatial)
    ndim = len(shape)
    return _subsample(padded.movedim((0, 1), (ndim, ndim + 1)), stride, ndim + 2)


class _CostVolume(torch.autograd.Function):
    """Cost volume by in-place accumulation over windows that are views of one padded map."""

    @staticmethod
    def forward(
        ctx: Any, fixed: Tensor, moving: Tensor, radius: int, stride: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(fixed, moving)
        ctx.options = radius, stride, dilation
        ndim, channels, side = fixed.ndim - 2, fixed.shape[1], 2 * radius + 1
        windows = _view_windows(_pad(moving, radius, dilation), fixed.shape[2:], stride, dilation)
        sampled = _subsample(fixed, stride)
        cost = sampled.new_zeros(*[side] * ndim, len(sampled), *sampled.shape[2:])
        for i, c in product(range(side), range(channels)):  # a slab of offsets fits in the cache
            cost[i].addcmul_(sampled[:, c], windows[i].select(ndim, c), value=1 / channels)
        return cost.flatten(0, ndim - 1).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        fixed, moving = ctx.saved_tensors
        radius, stride, dilation = ctx.options
        shape, scale = fixed.shape[2:], 1 / fixed.shape[1]
        padded = _pad(moving, radius, dilation)
        grad_fixed, grad_padded = torch.zeros_like(fixed), torch.zeros_like(padded)
        sampled, grad_sampled = (_subsample(x, stride) for x in (fixed, grad_fixed))
        windows, grad_windows = (
            _view_windows(x, shape, stride, dilation) for x in (padded, grad_padded)
        )
        for o, index in enumerate(product(range(2 * radius + 1), repeat=len(shape))):
            grad_offset = grad[:, o : o + 1]
            grad_sampled.addcmul_(grad_offset, windows[index], value=scale)
            grad_windows[index].addcmul_(grad_offset, sampled, value=scale)
        for axis, n in enumerate(shape, start=2):
            grad_padded = grad_padded.narrow(axis, radius * dilation, n)
        return grad_fixed, grad_padded, None, None, None
