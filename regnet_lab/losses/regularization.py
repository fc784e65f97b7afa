"""Losses that favour smooth, invertible and inverse-consistent displacements."""

from itertools import combinations

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.types import Pair, Registration


class Diffusion(Loss):
    """Diffusion energy sum_ik mean_x |d_k u_i|^p, by forward differences of u in voxels.

    p = 2 is GraDIRN's smoothness and, up to the factor D^2, that of VoxelMorph and FAIM; p = 1 is
    the anisotropic total variation.

    >>> u = torch.zeros(1, 2, 4, 4)
    >>> u[:, 0] = 0.5 * torch.arange(4.0)[:, None]  # du_0 / dx_0 = 0.5
    >>> Diffusion()(pair=None, out=Registration([u], warped=None))
    tensor(0.2500)
    """

    def __init__(self, power: int = 2, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.power = power

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        slopes = [u.diff(dim=axis) for axis in range(2, u.ndim) if u.shape[axis] > 1]
        return torch.stack([s.abs().pow(self.power).sum(1).mean() for s in slopes]).sum()


class TotalVariation(Loss):
    """Isotropic total variation mean_x sqrt(sum_ik (d_k u_i)^2 + eps) (Rudin et al., 1992).

    Forward differences of u in voxels; eps keeps the gradient finite where the field is constant.
    """

    def __init__(self, epsilon: float = 1e-6, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.epsilon = epsilon

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        slopes = ops.forward_difference(out.displacement.float())
        return (slopes.square().sum((1, 2)) + self.epsilon).sqrt().mean()


class BendingEnergy(Loss):
    """Bending energy mean_x sum_i sum_kl (d_k d_l u_i)^2 (Rueckert et al., IEEE TMI 1999).

    Compact second differences inside the grid, u in voxels; mixed terms count twice.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        axes = range(2, u.ndim)
        pure = [u.diff(n=2, dim=k).square().sum(1).mean() for k in axes]
        crossed = combinations(axes, 2)
        mixed = [u.diff(dim=k).diff(dim=m).square().sum(1).mean() for k, m in crossed]
        return torch.stack([*pure, *(2 * term for term in mixed)]).sum()


class FoldingPenalty(Loss):
    """Depth of folds relu(-det(I + du/dx)), by forward differences (Kuang and Schmah, 2018).

    ``reduction``: ``sum`` over voxels and batch, as published, or ``mean``, which does not grow
    with the image.
    """

    def __init__(self, reduction: str = "mean", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.reduction = {"sum": Tensor.sum, "mean": Tensor.mean}[reduction]

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return self.reduction(ops.jacobian_determinant(out.displacement, "forward").neg().relu())


@ops.full_precision
def fit_affine(u: Tensor) -> Tensor:
    """Fit an affine map to a displacement u (B, D, *spatial) by least squares, in voxels.

    The result (A | t), (B, D, D + 1), minimises the mean of |u(x) - A (x - c) - t|^2, c being the
    grid's centre.  Centred coordinates are uncorrelated over a grid, so each column has a closed
    form: A_ik = mean(u_i (x_k - c_k)) / mean((x_k - c_k)^2), 0 along an axis of one voxel, and
    t = mean(u).

    >>> u = torch.stack([0.5 * torch.arange(5.0).expand(4, 5), torch.full((4, 5), 2.0)])[None]
    >>> fit_affine(u)
    tensor([[[0.0000, 0.5000, 1.0000],
             [0.0000, 0.0000, 2.0000]]])
    """
    x = ops.identity_grid(u.shape[2:], u).flatten(2)
    x = x - x.mean(2, keepdim=True)  # (1, D, N)
    values = u.flatten(2)  # (B, D, N)
    variance = x.square().mean(2).clamp(min=1e-6)  # (1, D)
    slope = values @ x.mT / x.shape[2] / variance[:, None]
    return torch.cat([slope, values.mean(2, keepdim=True)], 2)


class AffinePenalty(Loss):
    """Mean square of (A | t), the affine part of the displacement (:func:`fit_affine`).

    The Pyramid CNN penalises the coefficients of its affine layers.  A loss sees only fields, so
    this penalises the affine part of the total displacement.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return fit_affine(out.displacement).square().mean()


def inverse_consistency(forward: Tensor, backward: Tensor) -> Tensor:
    """Compute the mean of |w|^2 in voxels^2, w being the composition of two fields.

    w is compose(forward, backward) and compose(backward, forward) (Christensen and Johnson, IEEE
    TMI 2001).  The sum of the fields, often used instead, also vanishes for fields that are not
    inverse to each other.  ``forward`` (B, D, *spatial) is on the fixed grid, ``backward`` on the
    moving one.

    >>> u = torch.full((1, 2, 8, 8), 3.0)
    >>> inverse_consistency(u, -u), inverse_consistency(u, torch.zeros_like(u))
    (tensor(0.), tensor(18.))
    """
    cycles = ops.compose(forward, backward), ops.compose(backward, forward)
    return (cycles[0].square().sum(1).mean() + cycles[1].square().sum(1).mean()) / 2
