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
    """A learned function for every filter, given by its values at equally spaced knots.

    Args:
        filters: Number F of functions.
        num_knots: Number K of knots of each function.
        knot_range: Position of the first and the last knot.
        init_std: Standard deviation of the initial values, truncated at twice as much.
        init_slope: Initial slope: the values deviate from slope * x.
    """

    def __init__(
        self,
        filters: int,
        num_knots: int = 24,
        knot_range: tuple[float, float] = (-1.0, 1.0),
        init_std: float = 0.01,
        init_slope: float = 0.0,
    ) -> None:
        super().__init__()
        low, high = knot_range
        if num_knots < 2 or low >= high:
            raise UserError(
                f"num_knots={num_knots}, knot_range={list(knot_range)}: give at least 2 knots, "
                "from low to high."
            )
        self.num_knots = num_knots
        self.knot_range = (low, high)
        self.step = (high - low) / (num_knots - 1)
        noise = nn.init.trunc_normal_(torch.empty(filters, num_knots))  # cut at 2
        self.values = nn.Parameter(init_std * noise + init_slope * self.compute_knot_positions())

    def compute_knot_positions(self) -> Tensor:
        """Return the positions (K,) of the knots."""
        return torch.linspace(*self.knot_range, self.num_knots)


class PiecewiseLinear(Activation):
    """Linear interpolation between the knots, constant outside."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply function f to channel f of (B, F, *spatial)."""
        low, _ = self.knot_range
        t = ((x - low) / self.step).clamp(0, self.num_knots - 1)
        below = t.detach().floor().clamp(max=self.num_knots - 2)
        first = self.num_knots * torch.arange(x.shape[1], device=x.device)
        index = (below.long() + first.view(1, -1, *[1] * (x.ndim - 2))).flatten()
        values = self.values.flatten()
        left, right = values.index_select(0, index), values.index_select(0, index + 1)
        return left.view_as(x) + (t - below) * (right - left).view_as(x)


class RadialBasis(Activation):
    """Sum of Gaussians at the knots g_k: sum_k w_k exp(-(x - g_k)^2 / 2 sigma^2).

    Sigma is the distance of the knots.  The terms, K times the image, are recomputed
    in the backward pass instead of being stored.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Apply function f to channel f of (B, F, *spatial)."""
        return checkpoint(self.sum_gaussians, x, self.values, use_reentrant=False)

    def sum_gaussians(self, x: Tensor, values: Tensor) -> Tensor:
        """Return the sum of the Gaussians weighted by ``values`` (F, K)."""
        per_filter = values.T.reshape(self.num_knots, 1, -1, *[1] * (x.ndim - 2))
        total = torch.zeros_like(x)
        for weight, knot in zip(per_filter, self.compute_knot_positions().tolist(), strict=True):
            total = total + weight * torch.exp(-0.5 * ((x - knot) / self.step) ** 2)
        return total


class FieldOfExperts(nn.Module):
    """The derivative of an energy sum_f sum_x rho_f((k_f * z)(x)) of every channel z.

    It is sum_f k_f^T phi_f(k_f * z) with phi_f = rho_f', k_f * z the convolution by a learned
    filter, zero outside the grid, and k_f^T its adjoint.

    Args:
        channels: Channels of z, each with its own filters.
        filters: Filters of a channel.
        kernel: Size of a filter, odd.
        activation: Creates the functions ``phi`` for a number of filters.

    Filters are initialised as normal with deviation (D / filters)^(1 / D) / kernel.
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
            raise UserError(f"A filter of {kernel} voxels has no centre: choose an odd size.")
        self.channels = channels
        deviation = (ndim / filters) ** (1 / ndim) / kernel
        shape = channels * filters, 1, *[kernel] * ndim
        self.kernels = nn.Parameter(torch.randn(shape) * deviation)
        self.activation = activation(channels * filters)

    @full_precision
    def forward(self, z: Tensor) -> Tensor:
        """Map (B, channels, *spatial) to the same shape."""
        ndim, padding = z.ndim - 2, self.kernels.shape[-1] // 2
        correlate = {2: F.conv2d, 3: F.conv3d}[ndim]
        adjoint = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[ndim]
        responses = correlate(z, self.kernels, padding=padding, groups=self.channels)
        return adjoint(
            self.activation(responses), self.kernels, padding=padding, groups=self.channels
        )
