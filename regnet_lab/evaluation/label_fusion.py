"""Labels of an atlas: a vote of its subjects, and how well it labels one it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import metrics, ops
from regnet_lab.data.datasets.unique_images import Population
from regnet_lab.evaluation import atlas_functional
from regnet_lab.metrics.tables import IDENTITY

NEAR = 0.01  # voxels by which an inverse may be wrong


@dataclass(frozen=True)
class Ballot:
    """Votes on the template's grid, (1, K, *spatial), of ``voters`` subjects.

    ``carried`` are those of labels seen through u, ``still`` of labels as they are.
    """

    values: list[int]
    voters: int
    carried: Tensor
    still: Tensor

    @property
    def winners(self) -> Tensor:
        """(1, 1, *spatial) the value with most votes."""
        return atlas_functional.winners(self.carried, self.values)

    @property
    def probabilities(self) -> Tensor:
        """(1, K, *spatial) shares of the votes."""
        return self.carried.float() / self.voters

    @property
    def share(self) -> Tensor:
        """(1, 1, *spatial) the winner's."""
        return self.carried.amax(1, keepdim=True).float() / self.voters

    @property
    def inside(self) -> Tensor:
        """(1, 1, *spatial) where any subject has a structure, before registration or after."""
        return (self.carried[:, 1:] + self.still[:, 1:]).any(1, keepdim=True)


def array(tensor: Tensor) -> NDArray:
    """A batch of one on the host: (*spatial) of one channel, (channels, *spatial) of more."""
    found = tensor.detach().cpu().numpy()[0]
    return found[0] if len(found) == 1 else found


def seen(labels: Tensor, u: Tensor) -> Tensor:
    """Labels through a displacement, background outside."""
    return ops.warp(labels, u, "nearest", "zeros")


def hold(subjects: Population, fields: Sequence[Tensor]) -> Ballot | None:
    """Let every subject with labels vote; none where fewer than two have any.

    Args:
        subjects: The voters.
        fields: Their u, (1, D, *spatial) each, from the template to the subject.
    """
    known = [s.labels.unique().tolist() for s in subjects if s.labels is not None]
    values = sorted({0}.union(*known))
    if len(known) < 2 or len(values) < 2:
        return None
    votes = torch.zeros(2, len(values), *fields[0].shape[2:], dtype=torch.int16)
    for subject, u in zip(subjects, fields, strict=True):
        if subject.labels is not None:
            maps = torch.cat([seen(subject.labels, u), subject.labels])
            votes += atlas_functional.one_hot(maps, values)
    carried, still = votes.split(1)
    return Ballot(values, len(known), carried, still)


def record(case: str, method: str, labels: Tensor, guess: Tensor, known: list[int]) -> dict:
    """Dice of a guess, in the form of :mod:`regnet_lab.metrics.tables`; NaN for labels that no
    other subject has.
    """
    by_label = metrics.dice(array(labels), np.array(known), array(guess))
    scores = np.array([score for score in by_label.values() if not np.isnan(score)])
    mean = float(scores.mean()) if scores.size else np.nan
    named = {f"dice/{label}": score for label, score in by_label.items()}
    return {"case": case, "method": method, "dice": mean} | named


def leave_one_out(
    ballot: Ballot, subjects: Population, fields: Sequence[Tensor], method: str
) -> tuple[list[dict[str, Any]], float]:
    """Label every subject by the votes of the others, and judge it by its own labels.

    The votes come back by the inverse v of u.

    Returns:
        Records of the vote without registration and with it; and the mean of |u o v|, voxels, by
        which the inverse is wrong.
    """
    records, residuals = [], []
    values = ballot.values
    for subject, u in zip(subjects, fields, strict=True):
        own = subject.labels
        if own is None:
            continue
        others = ballot.still - atlas_functional.one_hot(own, values)
        known = [v for v, votes in zip(values, others[0], strict=True) if votes.any()]
        guess = atlas_functional.winners(others, values)
        records.append(record(subject.name, IDENTITY, own, guess, known))
        v = ops.invert(u, tolerance=NEAR)
        residuals.append(float(ops.compose(v, u).norm(dim=1).mean()))
        guess = atlas_functional.fused(
            ballot.carried - atlas_functional.one_hot(seen(own, u), values), values, v
        )
        records.append(record(subject.name, method, own, guess, known))
    return records, float(np.mean(residuals))
