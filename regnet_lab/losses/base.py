"""The base class of loss terms and their weighted sum."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regnet_lab.types import Pair, Registration


class Loss(nn.Module):
    """One weighted term of the training objective.

    Args:
        weight: Factor of the term in the objective; ``forward`` does not apply it.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        """Return the unweighted term, a scalar."""
        raise NotImplementedError


def compute_objective(
    losses: Mapping[str, Loss] | nn.ModuleDict, pair: Pair, out: Registration
) -> dict[str, Tensor]:
    """Return every weighted term by its name, and their sum as ``loss``."""
    terms = {name: loss.weight * loss(pair, out) for name, loss in losses.items()}
    return terms | {"loss": torch.stack(list(terms.values())).sum()}
