"""Fuse the labels of an atlas's subjects by majority vote, and score it leave-one-out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import metrics, ops
from regnet_lab.data.datasets.unique_images import UniqueImages
from regnet_lab.evaluation import atlas_functional
from regnet_lab.metrics import scorers
from regnet_lab.metrics.tables import IDENTITY

INVERSE_TOLERANCE = 0.01  # largest error of an inverse, voxels
NEAREST = "nearest", "zeros"  # how labels are warped: background outside


@dataclass(frozen=True)
class LabelVotes:
    """Votes of subjects for labels on the template's grid."""

    values: list[int]  # labels of the K channels
    num_subjects: int
    warped_votes: Tensor  # (1, K, *spatial) by the labels warped to the template
    unregistered_votes: Tensor  # (1, K, *spatial) by the labels as they are

    @property
    def majority_labels(self) -> Tensor:
        """(1, 1, *spatial) label with most votes."""
        return atlas_functional.select_majority_labels(self.warped_votes, self.values)

    @property
    def probabilities(self) -> Tensor:
        """(1, K, *spatial) share of the votes of each label."""
        return self.warped_votes.float() / self.num_subjects

    @property
    def max_probability(self) -> Tensor:
        """(1, 1, *spatial) share of the votes of the majority label."""
        return self.warped_votes.amax(1, keepdim=True).float() / self.num_subjects

    @property
    def foreground(self) -> Tensor:
        """(1, 1, *spatial) True where any subject has a structure, registered or not."""
        return (self.warped_votes[:, 1:] + self.unregistered_votes[:, 1:]).any(1, keepdim=True)


def to_numpy(tensor: Tensor) -> NDArray:
    """Convert a batch of one: (*spatial) of one channel, (channels, *spatial) of several."""
    array = tensor.detach().cpu().numpy()[0]
    return array[0] if len(array) == 1 else array


def count_votes(subjects: UniqueImages, fields: Sequence[Tensor]) -> LabelVotes | None:
    """Count the votes of all subjects with labels; None where fewer than two have labels.

    ``fields`` are their u, (1, D, *spatial) each, from the template to the subject.
    """
    subject_values = [s.labels.unique().tolist() for s in subjects if s.labels is not None]
    values = sorted({0}.union(*subject_values))
    if len(subject_values) < 2 or len(values) < 2:
        return None
    votes = torch.zeros(2, len(values), *fields[0].shape[2:], dtype=torch.int16)
    for subject, u in zip(subjects, fields, strict=True):
        if subject.labels is not None:
            maps = torch.cat([ops.warp(subject.labels, u, *NEAREST), subject.labels])
            votes += atlas_functional.encode_one_hot(maps, values)
    warped_votes, unregistered_votes = votes.split(1)
    return LabelVotes(values, len(subject_values), warped_votes, unregistered_votes)


def make_dice_record(
    case: str, method: str, labels: Tensor, predicted: Tensor, values: list[int]
) -> dict[str, Any]:
    """Compute Dice of predicted labels as a record of :mod:`regnet_lab.metrics.tables`.

    Labels that are not in ``values``, those that no other subject has, are NaN.
    """
    by_label = metrics.dice(to_numpy(labels), np.array(values), to_numpy(predicted))
    return {"case": case, "method": method} | scorers.add_label_mean("dice", by_label)


def score_leave_one_out(
    votes: LabelVotes, subjects: UniqueImages, fields: Sequence[Tensor], method: str
) -> tuple[list[dict[str, Any]], float]:
    """Label every subject by the votes of the others and compute Dice with its own labels.

    The votes are warped to the subject by the inverse v of u.  Returns records of the vote without
    registration and with it, and the mean of |u o v|, voxels, the error of the inverse.
    """
    records, residuals = [], []
    values = votes.values
    for subject, u in zip(subjects, fields, strict=True):
        labels = subject.labels
        if labels is None:
            continue
        other_votes = votes.unregistered_votes - atlas_functional.encode_one_hot(labels, values)
        other_values = [v for v, vote in zip(values, other_votes[0], strict=True) if vote.any()]
        predicted = atlas_functional.select_majority_labels(other_votes, values)
        records.append(make_dice_record(subject.name, IDENTITY, labels, predicted, other_values))
        v = ops.invert(u, tolerance=INVERSE_TOLERANCE)
        residuals.append(float(ops.compose(v, u).norm(dim=1).mean()))
        subject_votes = atlas_functional.encode_one_hot(ops.warp(labels, u, *NEAREST), values)
        predicted = atlas_functional.fuse_labels(votes.warped_votes - subject_votes, values, v)
        records.append(make_dice_record(subject.name, method, labels, predicted, other_values))
    return records, float(np.mean(residuals))
