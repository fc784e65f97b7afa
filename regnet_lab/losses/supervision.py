"""Distance to what is known: displacements and landmarks."""

import torch.nn.functional as F
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.pair import Pair, Registration, need


class EndpointError(Loss):
    """Mean distance |u - u_true| to the known displacement, voxels."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        error = out.displacement - need(pair, "displacement", self)
        return (error.square().sum(1) + 1e-12).sqrt().mean()


class HuberDisplacement(Loss):
    """Huber's function of every component of u - u_true, mean; ``delta`` in voxels (RegNet)."""

    def __init__(self, delta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.delta = delta

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return F.huber_loss(out.displacement, need(pair, "displacement", self), delta=self.delta)


class LandmarkDistance(Loss):
    """Mean distance |x_f + u(x_f) - x_m| of corresponding landmarks, mm."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        fixed, moving = need(pair, "fixed_points", self), need(pair, "moving_points", self)
        error = fixed + ops.sample_at(out.displacement, fixed) - moving
        return ((error * pair["spacing"][:, None]).square().sum(-1) + 1e-12).sqrt().mean()
