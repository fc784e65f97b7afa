"""Learning-rate schedulers that torch.optim lacks."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from regnet_lab.errors import UserError


class InverseTimeLR(LRScheduler):
    """Inverse time decay as in Keras' optimizers: lr / (1 + decay t) after t optimizer steps."""

    interval = "step"  # read by RegistrationModule: stepped every training step

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay = decay
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [lr / (1 + self.decay * self.last_epoch) for lr in self.base_lrs]


class PiecewiseConstantLR(LambdaLR):
    """Constant learning rates in parts of equal length: the initial rate over a divisor for each.

    In epoch e of E the rate is lr / lr_divisors[floor(K e / E)], K being their number.  The default
    is the Pyramid CNN's (Learn2Reg 2020): halved every tenth of the training, with a warm restart
    half way.

    Args:
        optimizer: Optimizer, stepped once an epoch.
        epochs: E; afterwards the last divisor holds.
        lr_divisors: One for each part, positive.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        lr_divisors: Sequence[float] = (1, 2, 4, 8, 16, 2, 4, 8, 16, 16),
    ) -> None:
        count = len(lr_divisors)
        if epochs < 1 or not lr_divisors or min(lr_divisors) <= 0:
            raise UserError(
                f"scheduler: epochs={epochs} must be at least 1 (set trainer.max_epochs) and "
                f"lr_divisors={list(lr_divisors)} positive numbers."
            )
        super().__init__(optimizer, lambda e: 1 / lr_divisors[min(count * e // epochs, count - 1)])
