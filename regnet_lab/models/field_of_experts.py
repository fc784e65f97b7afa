"""Fields of experts with learned activations: the terms of a variational network.

Roth and Black: Fields of experts, IJCV 2009; Chen and Pock: Trainable nonlinear reaction diffusion,
IEEE TPAMI 2017.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet_lab.errors import UserError
from regnet_lab.ops import full_precision


class Activation(nn.Module):
    """A function of its own for every filter, given by its values at equally spaced knots.

    Args:
        filters: Number F of functions.
        knots: Number K of knots of each.
        region: Where the first and the last knot lie.
        deviation: Standard deviation of the values at the start, cut at twice as much.
        slope: What they deviate from: slope * x.
    """

    def __init__(
        self,
        filters: int,
        knots: int = 24,
        region: tuple[float, float] = (-1.0, 1.0),
        deviation: float = 0.01,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        low, high = region
        if knots < 2 or low >= high:
            raise UserError(
                f"knots={knots}, region={list(region)}: give 2 or more, from low to high."
            )
        self.knots, self.region, self.step = knots, (low, high), (high - low) / (knots - 1)
        noise = nn.init.trunc_normal_(torch.empty(filters, knots))  # cut at 2
        self.values = nn.Parameter(deviation * noise + slope * self.positions())

    def positions(self) -> Tensor:
        """(K,) where the knots lie."""
        return torch.linspace(*self.region, self.knots)


class PiecewiseLinear(Activation):
    """Linear interpolation between the knots, constant beyond them."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply function f to channel f of (B, F, *spatial)."""
        low, _ = self.region
        t = ((x - low) / self.step).clamp(0, self.knots - 1)
        below = t.detach().floor().clamp(max=self.knots - 2)
        first = self.knots * torch.arange(x.shape[1], device=x.device)
        index = (below.long() + first.view(1, -1, *[1] * (x.ndim - 2))).flatten()
        values = self.values.flatten()
        left, right = values.index_select(0, index), values.index_select(0, index + 1)
        return left.view_as(x) + (t - below) * (right - left).view_as(x)


class RadialBasis(Activation):
    """A Gaussian at every knot, as wide (sigma) as knots are apart: sum_k w_k exp(-(x - g_k)^2 / 2
    sigma^2).

    Its terms are summed again for the gradient instead of being kept, K times the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply function f to channel f of (B, F, *spatial)."""
        return checkpoint(self.bells, x, self.values, use_reentrant=False)

    def bells(self, x: Tensor, values: Tensor) -> Tensor:
        per_filter = values.T.reshape(self.knots, 1, -1, *[1] * (x.ndim - 2))
        total = torch.zeros_like(x)
        for weight, knot in zip(per_filter, self.positions().tolist(), strict=True):
            total = total + weight * torch.exp(-0.5 * ((x - knot) / self.step) ** 2)
        return total


class FieldOfExperts(nn.Module):
    """The derivative of an energy sum_f sum_x rho_f((k_f * z)(x)) of every channel z by itself.

    It is sum_f k_f^T phi_f(k_f * z), phi_f being rho_f',
    with k_f * z the convolution by a learned filter, zero outside the grid, and k_f^T its adjoint.

    Args:
        ndim: 2 or 3.
        channels: Channels of z, each with filters of its own.
        filters: Filters of a channel.
        kernel: Width of a filter, odd.
        activation: Makes ``phi`` for a number of filters.

    Filters start normal with deviation (D / filters)^(1 / D) / kernel.
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        filters: int,
        kernel: int,
        activation: Callable[[int], Activation],
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"A filter of {kernel} voxels has no centre: give it an odd width.")
        self.channels = channels
        deviation = (ndim / filters) ** (1 / ndim) / kernel
        self.kernels = nn.Parameter(
            torch.randn(channels * filters, 1, *[kernel] * ndim) * deviation
        )
        self.activation = activation(channels * filters)

    @full_precision
    def forward(self, z: Tensor) -> Tensor:
        """(B, channels, *spatial) to the same."""
        ndim, padding = z.ndim - 2, self.kernels.shape[-1] // 2
        correlate = {2: F.conv2d, 3: F.conv3d}[ndim]
        adjoint = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[ndim]
        responses = correlate(z, self.kernels, padding=padding, groups=self.channels)
        return adjoint(
            self.activation(responses), self.kernels, padding=padding, groups=self.channels
        )
