"""Learning-rate schedules that torch.optim lacks."""

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regnet_lab.errors import UserError


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
