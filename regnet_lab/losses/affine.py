"""The affine part of a displacement."""

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.pair import Pair, Registration


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
