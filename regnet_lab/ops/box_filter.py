"""Sums over boxes and the squared correlation within them.

A box sum is one banded matrix product per axis.  Each axis is cut into blocks that only need
their own voxels and half a window on either side, which is faster than a convolution.
"""

from typing import Any

import torch
from torch import Tensor

from regnet_lab.ops.precision import full_precision

BLOCK_VOXELS = 32  # measured on CPUs, where whole axes take 1.2 to 4 times as long


def compute_window_matrix(n: int, window: int, padding: str, like: Tensor) -> Tensor:
    """Compute the banded matrix (n, n) that sums ``window`` neighbours along an axis.

    Neighbours beyond the border are ``zeros``, or the outermost voxel with padding ``replicate``.
    """
    index = torch.arange(n, device=like.device)
    offsets = torch.arange(window, device=like.device) - (window - 1) // 2
    neighbour = index[:, None] + offsets  # (n, window)
    inside = (neighbour >= 0) & (neighbour < n)
    weight = inside if padding == "zeros" else torch.ones_like(inside)
    band = torch.zeros(n, n, dtype=like.dtype, device=like.device)
    return band.scatter_add_(1, neighbour.clamp(0, n - 1), weight.to(like.dtype))


def _apply_banded(image: Tensor, axis: int, band: Tensor, window: int) -> Tensor:
    """Multiply every line along an axis by a banded matrix."""
    n = image.shape[axis]
    lines = image.reshape(-1, n, image.shape[axis + 1 :].numel())  # (before, n, after)
    out = torch.empty_like(lines, memory_format=torch.contiguous_format)
    for first in range(0, n, BLOCK_VOXELS):
        last = min(first + BLOCK_VOXELS, n)
        rows = slice(first, last)
        columns = slice(max(first - window // 2, 0), min(last + window // 2, n))  # not zero there
        block = band[rows, columns]
        if axis == image.ndim - 1:
            torch.mm(lines[:, columns, 0], block.T, out=out[:, rows, 0])
        else:
            torch.bmm(block.expand(len(lines), -1, -1), lines[:, columns], out=out[:, rows])
    return out.view(image.shape)


@full_precision
def _sum_boxes(image: Tensor, window: int, padding: str, transposed: bool = False) -> Tensor:
    """Compute :func:`box_sum`, or with ``transposed`` its adjoint, without autograd."""
    for axis in range(2, image.ndim):
        band = compute_window_matrix(image.shape[axis], window, padding, image)
        image = _apply_banded(image, axis, band.T if transposed else band, window)
    return image


class _BoxSum(torch.autograd.Function):
    """Box sum whose gradient is the adjoint box sum, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: int, padding: str, transposed: bool) -> Tensor:
        ctx.options = window, padding, transposed
        return _sum_boxes(image, window, padding, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        window, padding, transposed = ctx.options
        return _BoxSum.apply(grad, window, padding, not transposed), None, None, None


def box_sum(image: Tensor, window: int, padding: str = "zeros") -> Tensor:
    """Sum over a box of side ``window`` around every voxel of (B, C, *spatial).

    Padding is ``zeros`` or ``replicate``.  Differentiable any number of times.

    >>> box_sum(torch.ones(1, 1, 3, 3), window=3)[0, 0]
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """
    return _BoxSum.apply(image, window, padding, False)


def squared_correlation(
    fixed: Tensor, warped: Tensor, window: int, padding: str, epsilon: float, floor: float = 0.0
) -> Tensor:
    """Compute cc(x) = (|S(fw)| + floor)^2 / ((S(ff) + floor) (S(ww) + floor) + epsilon).

    S are box sums of centered products.  With a ``floor`` and without ``epsilon`` cc is 1 where
    both windows are constant, and at its largest, 1, where both images are equal.  Plain form,
    differentiable any number of times.
    """
    count = window ** (fixed.ndim - 2)
    maps = (fixed, warped, fixed * fixed, warped * warped, fixed * warped)
    f, w, ff, ww, fw = (box_sum(each, window, padding) for each in maps)
    cross = fw - f * w / count
    variance_f = (ff - f * f / count).clamp(min=0)
    variance_w = (ww - w * w / count).clamp(min=0)
    cross = cross + floor * torch.where(cross < 0, -1.0, 1.0)
    return cross**2 / ((variance_f + floor) * (variance_w + floor) + epsilon)


def weighted_squared_correlation(
    fixed: Tensor,
    warped: Tensor,
    weight: Tensor,
    window: int,
    padding: str,
    epsilon: float,
    floor: float = 0.0,
) -> Tensor:
    """Compute the sum over voxels of weight times :func:`squared_correlation`, (B,).

    Gradients are in closed form and computed with the value: three more box sums for one image,
    five for both, and one stored map for each.  Images are (B, C, *spatial); ``weight`` broadcasts
    to them and gets no gradient; ``epsilon`` or ``floor`` avoids 0 / 0 in constant regions.
    """
    options = window, padding, epsilon, floor
    return _WeightedSquaredCorrelation.apply(fixed, warped, weight, *options)


class _WeightedSquaredCorrelation(torch.autograd.Function):
    """Value and closed-form gradients of :func:`weighted_squared_correlation`."""

    @staticmethod
    def forward(
        ctx: Any,
        fixed: Tensor,
        warped: Tensor,
        weight: Tensor,
        window: int,
        padding: str,
        epsilon: float,
        floor: float,
    ) -> Tensor:
        scale = -1 / window ** (fixed.ndim - 2)

        def total(image: Tensor, transposed: bool = False) -> Tensor:
            return _sum_boxes(image, window, padding, transposed)

        f, w = total(fixed), total(warped)
        cross = total(fixed * warped).addcmul_(f, w, value=scale)
        raw_f = total(fixed * fixed).addcmul_(f, f, value=scale)
        raw_w = total(warped * warped).addcmul_(w, w, value=scale)
        variance_f, variance_w = raw_f.clamp(min=0), raw_w.clamp(min=0)
        if floor:
            cross.add_(torch.where(cross < 0, -floor, floor))
            variance_f.add_(floor), variance_w.add_(floor)
        inverse = (variance_f * variance_w).add_(epsilon).reciprocal_()
        ratio = cross * inverse
        cc = cross.mul_(ratio)

        value = (cc * weight).flatten(1).sum(1)
        needs_f, needs_w = ctx.needs_input_grad[:2]
        if not needs_f and not needs_w:
            return value

        # d cc = 2 ratio dS(fw) - cc inverse (variance_w dS(ff) + variance_f dS(ww)), centered
        grad_product = (2 * ratio).mul_(weight)
        factor = inverse.mul_(cc).mul_(weight).neg_()
        adjoint_product = total(grad_product, True)

        def gradient(
            image: Tensor,
            other: Tensor,
            image_sum: Tensor,
            other_sum: Tensor,
            raw: Tensor,
            other_variance: Tensor,
        ) -> Tensor:
            """Compute the gradient with respect to ``image``."""
            grad_square = (factor * other_variance).mul_(raw >= 0)
            grad_sum = (grad_product * other_sum).addcmul_(grad_square, image_sum, value=2)
            return (
                total(grad_sum.mul_(scale), True)
                .addcmul_(image, total(grad_square, True), value=2)
                .addcmul_(other, adjoint_product)
            )

        ctx.options = window, padding, epsilon, floor
        ctx.save_for_backward(
            fixed,
            warped,
            weight,
            gradient(fixed, warped, f, w, raw_f, variance_w) if needs_f else None,
            gradient(warped, fixed, w, f, raw_w, variance_f) if needs_w else None,
        )
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        fixed, warped, weight, grad_fixed, grad_warped = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        per_case = grad.view(-1, *[1] * (fixed.ndim - 1))
        if not torch.is_grad_enabled():
            grads = [None if g is None else per_case * g for g in (grad_fixed, grad_warped)]
            return *grads, None, None, None, None, None
        inputs = [x for x, need in zip((fixed, warped), needed, strict=True) if need]
        cc = squared_correlation(fixed, warped, *ctx.options)
        computed = iter(
            torch.autograd.grad(cc, inputs, (per_case * weight).expand_as(cc), create_graph=True)
        )
        grads = [next(computed) if need else None for need in needed]
        return *grads, None, None, None, None, None
