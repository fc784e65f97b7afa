"""Learning rates over time that torch does not have."""

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class InverseTime(LRScheduler):
    """lr_t = lr / (1 + decay t) after t steps of the optimizer: ``decay`` of Keras' optimizers."""

    interval = "step"  # Lightning's word for how often

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay = decay
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [lr / (1 + self.decay * self.last_epoch) for lr in self.base_lrs]
