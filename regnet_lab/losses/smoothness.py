"""Smoothness and invertibility of the displacement."""

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.pair import Pair, Registration


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
