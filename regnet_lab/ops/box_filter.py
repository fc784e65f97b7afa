"""Sums over boxes, and the squared correlation in them, without a convolution.

A box sum is one banded matrix product for each axis, and the bands are narrow: an axis is cut into
blocks, each of which needs its own voxels and half a window on either side.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from regnet_lab import ops

BLOCK = 32  # voxels; measured on CPUs, where a whole axis is 1.2 to 4 times as slow


def window_matrix(n: int, window: int, padding: str, like: Tensor) -> Tensor:
    """(n, n) banded matrix that sums ``window`` neighbours along an axis; ``padding`` says what
    the neighbours beyond the border are: ``zeros`` or ``replicate`` (the outermost voxel).
    """
    at = torch.arange(n, device=like.device)
    offsets = torch.arange(window, device=like.device) - (window - 1) // 2
    neighbour = at[:, None] + offsets  # (n, window)
    inside = (neighbour >= 0) & (neighbour < n)
    weight = inside if padding == "zeros" else torch.ones_like(inside)
    band = torch.zeros(n, n, dtype=like.dtype, device=like.device)
    return band.scatter_add_(1, neighbour.clamp(0, n - 1), weight.to(like.dtype))


def _blocks(n: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a band, block by block, and the columns in which they are not zero."""
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        yield slice(first, last), slice(max(first - window // 2, 0), min(last + window // 2, n))


def _along(image: Tensor, axis: int, band: Tensor, window: int) -> Tensor:
    """The banded matrix times every line along an axis."""
    n = image.shape[axis]
    lines = image.reshape(-1, n, image.shape[axis + 1 :].numel())  # (before, n, after)
    out = torch.empty_like(lines, memory_format=torch.contiguous_format)
    for rows, columns in _blocks(n, window):
        part = band[rows, columns]
        if axis == image.ndim - 1:
            torch.mm(lines[:, columns, 0], part.T, out=out[:, rows, 0])
        else:
            torch.bmm(part.expand(len(lines), -1, -1), lines[:, columns], out=out[:, rows])
    return out.view(image.shape)


@ops.full_precision
def _summed(image: Tensor, window: int, padding: str, transposed: bool = False) -> Tensor:
    for axis in range(2, image.ndim):
        band = window_matrix(image.shape[axis], window, padding, image)
        image = _along(image, axis, band.T if transposed else band, window)
    return image


class _BoxSum(torch.autograd.Function):
    """Linear, so that its gradient is the transposed sum, and so on without end."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: int, padding: str, transposed: bool) -> Tensor:
        ctx.how = window, padding, transposed
        return _summed(image, window, padding, transposed)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        window, padding, transposed = ctx.how
        return _BoxSum.apply(slope, window, padding, not transposed), None, None, None


def box_sum(image: Tensor, window: int, padding: str = "zeros") -> Tensor:
    """Sum over a window^D box around every voxel of (B, C, *spatial); padding ``zeros`` or
    ``replicate``.  Differentiable any number of times.
    """
    return _BoxSum.apply(image, window, padding, False)


def squared_correlation(
    fixed: Tensor, warped: Tensor, window: int, padding: str, epsilon: float
) -> Tensor:
    """cc(x) = S^2(fw) / (S(ff) S(ww) + epsilon), sums S of centred products over a box around x:
    the plain form, differentiable any number of times.
    """
    count = window ** (fixed.ndim - 2)
    maps = (fixed, warped, fixed * fixed, warped * warped, fixed * warped)
    f, w, ff, ww, fw = (box_sum(each, window, padding) for each in maps)
    cross = fw - f * w / count
    variance_f = (ff - f * f / count).clamp(min=0)
    variance_w = (ww - w * w / count).clamp(min=0)
    return cross**2 / (variance_f * variance_w + epsilon)


def mean_squared_correlation(
    fixed: Tensor, warped: Tensor, weight: Tensor, window: int, padding: str, epsilon: float
) -> Tensor:
    """Sum of weight cc over all voxels of each case, (B,); cc as in :func:`squared_correlation`.

    The gradients are in closed form and made along with the value: three more box sums for one
    image, five for both, and one map kept for each.

    Args:
        fixed: (B, C, *spatial).
        warped: The same shape.
        weight: Anything that multiplies those maps; no gradient.
        window: Side of the box.
        padding: ``zeros`` or ``replicate``.
        epsilon: Keeps flat places from 0 / 0.
    """
    return _MeanSquaredCorrelation.apply(fixed, warped, weight, window, padding, epsilon)


class _MeanSquaredCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fixed: Tensor,
        warped: Tensor,
        weight: Tensor,
        window: int,
        padding: str,
        epsilon: float,
    ) -> Tensor:
        share = -1 / window ** (fixed.ndim - 2)

        def total(image: Tensor, transposed: bool = False) -> Tensor:
            return _summed(image, window, padding, transposed)

        f, w = total(fixed), total(warped)
        cross = total(fixed * warped).addcmul_(f, w, value=share)
        raw_f = total(fixed * fixed).addcmul_(f, f, value=share)
        raw_w = total(warped * warped).addcmul_(w, w, value=share)
        variance_f, variance_w = raw_f.clamp(min=0), raw_w.clamp(min=0)
        inverse = (variance_f * variance_w).add_(epsilon).reciprocal_()
        ratio = cross * inverse
        cc = cross.mul_(ratio)

        value = (cc * weight).flatten(1).sum(1)
        needs_f, needs_w = ctx.needs_input_grad[:2]
        if not needs_f and not needs_w:
            return value

        # d cc = 2 ratio dS(fw) - cc inverse (variance_w dS(ff) + variance_f dS(ww)), centred
        to_product = (2 * ratio).mul_(weight)
        steep = inverse.mul_(cc).mul_(weight).neg_()
        along_product = total(to_product, True)

        def slope(
            one: Tensor, other: Tensor, own: Tensor, beside: Tensor, raw: Tensor, variance: Tensor
        ) -> Tensor:
            """Gradient to image ``one``, with the sums and variances of the one and the other."""
            to_square = (steep * variance).mul_(raw >= 0)
            to_sum = (to_product * beside).addcmul_(to_square, own, value=2).mul_(share)
            return (
                total(to_sum, True)
                .addcmul_(one, total(to_square, True), value=2)
                .addcmul_(other, along_product)
            )

        ctx.numbers = window, padding, epsilon
        ctx.save_for_backward(
            fixed,
            warped,
            weight,
            slope(fixed, warped, f, w, raw_f, variance_w) if needs_f else None,
            slope(warped, fixed, w, f, raw_w, variance_f) if needs_w else None,
        )
        return value

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        fixed, warped, weight, to_fixed, to_warped = ctx.saved_tensors
        each = slope.view(-1, *[1] * (fixed.ndim - 1))
        if not torch.is_grad_enabled():
            known = (None if g is None else each * g for g in (to_fixed, to_warped))
            return *known, None, None, None, None
        wanted = [x for x, need in zip((fixed, warped), ctx.needs_input_grad, strict=False) if need]
        cc = squared_correlation(fixed, warped, *ctx.numbers)
        found = torch.autograd.grad(cc, wanted, (each * weight).expand_as(cc), create_graph=True)
        gradients = iter(found)
        known = (next(gradients) if need else None for need in ctx.needs_input_grad[:2])
        return *known, None, None, None, None
