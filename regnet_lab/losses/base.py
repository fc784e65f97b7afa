"""The loss, and losses made of losses."""

from collections.abc import Sequence

from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.ops.pairs import resized
from regnet_lab.types import Pair, Registration


class Loss(nn.Module):
    """One weighted term of the training objective."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        raise NotImplementedError


class PerLevel(Loss):
    """A term applied to every field the model returns, coarse to fine (deep supervision).

    At each level the pair is brought to the field's grid; everything is in that grid's voxels.

    Args:
        term: The loss applied at each level.
        weights: One for each field, coarse to fine.
        weight: Factor of the whole.
    """

    def __init__(self, term: Loss, weights: Sequence[float], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term, self.weights = term, list(weights)

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if len(self.weights) != len(out.fields):
            raise UserError(
                f"PerLevel has {len(self.weights)} weights but the model returns "
                f"{len(out.fields)} fields: give one weight for each, coarse to fine."
            )
        total = out.warped.new_zeros(())
        for w, u in zip(self.weights, out.fields, strict=True):
            level = resized(pair, u.shape[2:])
            total = total + w * self.term(level, Registration([u], ops.warp(level["moving"], u)))
        return total
