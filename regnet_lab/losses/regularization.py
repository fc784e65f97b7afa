"""Smoothness and invertibility of the displacement."""

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.types import Pair, Registration


class Diffusion(Loss):
    """sum_ik mean_x |d_k u_i|^p with forward differences of the displacement in voxels.

    p = 2 is the squared Frobenius norm of the displacement's derivative, GraDIRN's and, up to the
    factor D^2, VoxelMorph's and FAIM's smoothness; p = 1 is the anisotropic total variation.
    """

    def __init__(self, power: int = 2, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.power = power

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        slopes = [u.diff(dim=axis) for axis in range(2, u.ndim)]
        return torch.stack([s.abs().pow(self.power).sum(1).mean() for s in slopes]).sum()


class TotalVariation(Loss):
    """mean_x sqrt(sum_ik (d_k u_i)^2 + eps) with forward differences, isotropic (Rudin, Osher and
    Fatemi, 1992), displacement in voxels; eps keeps the gradient finite where the field is flat.
    """

    def __init__(self, epsilon: float = 1e-6, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.epsilon = epsilon

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        slopes = ops.forward_difference(out.displacement.float())
        return (slopes.square().sum((1, 2)) + self.epsilon).sqrt().mean()


class Bending(Loss):
    """Bending energy mean_x sum_i sum_kl (d_k d_l u_i)^2, mixed terms twice (Rueckert et al.,
    IEEE TMI 1999), by compact second differences inside the grid, displacement in voxels.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        axes = range(2, u.ndim)
        pure = [u.diff(n=2, dim=k).square().sum(1).mean() for k in axes]
        mixed = [
            u.diff(dim=k).diff(dim=m).square().sum(1).mean() for k in axes for m in axes if k < m
        ]
        return torch.stack([*pure, *(2 * term for term in mixed)]).sum()


class Folding(Loss):
    """Depth of the folds, relu(-det(I + du/dx)) with forward differences (Kuang and Schmah, 2018).

    ``reduction``: ``sum`` over voxels and batch, as published, or ``mean``, which does not grow
    with the image.
    """

    def __init__(self, reduction: str = "mean", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.reduction = {"sum": Tensor.sum, "mean": Tensor.mean}[reduction]

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        depth = ops.jacobian_determinant(out.displacement, "forward").neg().relu()
        return self.reduction(depth)


@ops.full_precision
def affine_fit(u: Tensor) -> Tensor:
    """(B, D, D + 1) matrix (A | t) that minimises the mean of |u(x) - A (x - c) - t|^2, c the
    grid's centre; voxels.

    Coordinates less their mean are uncorrelated over a grid, so each column stands alone:
    A_ik = mean(u_i (x_k - c_k)) / mean((x_k - c_k)^2), 0 along an axis of one voxel; t = mean(u).
    """
    x = ops.identity_grid(u.shape[2:], u).flatten(2)
    x = x - x.mean(2, keepdim=True)  # (1, D, N)
    values = u.flatten(2)  # (B, D, N)
    spread = x.square().mean(2).clamp(min=1e-6)  # (1, D)
    slope = values @ x.mT / x.shape[2] / spread[:, None]
    return torch.cat([slope, values.mean(2, keepdim=True)], 2)


class AffinePenalty(Loss):
    """Mean of (A | t)^2, the least-squares affine part of the displacement (:func:`affine_fit`).

    The Pyramid CNN punished the coefficients of its affine layers; a loss sees fields, so it is
    their affine part that should be small, whichever part of the model made it.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return affine_fit(out.displacement).square().mean()


def inverse_consistency(there: Tensor, back: Tensor) -> Tensor:
    """Mean of |w|^2 over voxels, voxels^2, where w is the way there and back, in either order.

    w is compose(there, back) and compose(back, there): sums of fields, as often used instead, are
    zero for other fields than each other's inverse (Christensen and Johnson, IEEE TMI 2001).

    Args:
        there: (B, D, *spatial) displacement on the fixed grid.
        back: The same on the moving grid.
    """
    rounds = ops.compose(there, back), ops.compose(back, there)
    return (rounds[0].square().sum(1).mean() + rounds[1].square().sum(1).mean()) / 2
