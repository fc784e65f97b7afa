"""Losses that compare with a reference: labels, a true displacement or landmarks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.types import Pair, Registration, require


class SoftDice(Loss):
    """1 - mean of 2 sum(f w) / (sum f + sum w) over the structures of each fixed image.

    f is a structure's binary mask in the fixed labels, w its mask in the moving labels, warped
    linearly so that the loss is differentiable.  Background (0) is excluded.

    With ``skip_unlabelled``, for partly labelled data, it is 0 for pairs without labels instead of
    an error.
    """

    def __init__(self, skip_unlabelled: bool = False, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.skip_unlabelled = skip_unlabelled

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if self.skip_unlabelled and not {"fixed_labels", "moving_labels"} <= pair.keys():
            return out.displacement.new_zeros(())
        fixed, moving = require(pair, "fixed_labels", self), require(pair, "moving_labels", self)
        structures = torch.unique(fixed)
        structures = structures[structures != 0].view(1, -1, *[1] * (fixed.ndim - 2))
        f = (fixed == structures).to(out.displacement.dtype)  # (B, K, *spatial)
        w = ops.warp((moving == structures).to(f.dtype), out.displacement, padding="zeros")
        overlap, size_f, size_w = (a.flatten(2).sum(2) for a in (f * w, f, w))
        dice = (2 * overlap + 1e-5) / (size_f + size_w + 1e-5)
        present = (size_f > 0).to(dice.dtype)
        return 1 - (dice * present).sum() / present.sum().clamp(min=1)


class EndpointError(Loss):
    """Mean distance |u - u_true| to the true displacement, in voxels."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        error = out.displacement - require(pair, "displacement", self)
        return (error.square().sum(1) + 1e-12).sqrt().mean()


class HuberDisplacement(Loss):
    """Mean Huber loss of the components of u - u_true; ``delta`` in voxels (RegNet)."""

    def __init__(self, delta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.delta = delta

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return F.huber_loss(out.displacement, require(pair, "displacement", self), delta=self.delta)


class LandmarkDistance(Loss):
    """Mean distance |x_f + u(x_f) - x_m| of corresponding landmarks, in mm."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        fixed, moving = require(pair, "fixed_points", self), require(pair, "moving_points", self)
        error = fixed + ops.sample_at(out.displacement, fixed) - moving
        return ((error * pair["spacing"][:, None]).square().sum(-1) + 1e-12).sqrt().mean()
