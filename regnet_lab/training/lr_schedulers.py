"""Learning-rate schedules that torch.optim lacks."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from regnet_lab.errors import UserError


class InverseTime(LRScheduler):
    """lr_t = lr / (1 + decay t) after t steps of the optimizer: ``decay`` of Keras' optimizers."""

    interval = "step"  # Lightning's word for how often

    def __init__(self, optimizer: Optimizer, decay: float) -> None:
        self.decay = decay
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [lr / (1 + self.decay * self.last_epoch) for lr in self.base_lrs]


class Staircase(LambdaLR):
    """Training in parts of equal length, each with the first learning rate over its divisor.

    In epoch e of E the rate is lr / divisors[floor(K e / E)], K being their number.  The default
    is the Pyramid CNN's: halved every tenth of the way, with a warm restart at the half.

    Args:
        optimizer: Whose rates are set, stepped once an epoch.
        epochs: E, after which the last divisor holds.
        divisors: One for each part.

    Raises:
        UserError: There is no epoch, no divisor, or one that is not positive.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        divisors: Sequence[float] = (1, 2, 4, 8, 16, 2, 4, 8, 16, 16),
    ) -> None:
        if epochs < 1 or not divisors or min(divisors) <= 0:
            raise UserError(
                f"scheduler: epochs={epochs} must be at least 1 (set trainer.max_epochs) and "
                f"divisors={list(divisors)} positive numbers."
            )

        def factor(epoch: int) -> float:
            return 1 / divisors[min(len(divisors) * epoch // epochs, len(divisors) - 1)]

        super().__init__(optimizer, factor)
