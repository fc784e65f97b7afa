"""Fields that cannot fold."""

from torch import Tensor, nn

from regnet_lab import ops


class Diffeomorphic(nn.Module):
    """Take every field of ``model`` for a stationary velocity and return its flow at time one.

    Scaling and squaring with ``steps`` squarings (Dalca et al., MedIA 2019).
    """

    def __init__(self, model: nn.Module, steps: int = 7) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return [ops.integrate(v, self.steps) for v in self.model(fixed, moving)]
