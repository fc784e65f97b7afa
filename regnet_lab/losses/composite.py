"""Losses that wrap another loss: per pyramid level, per iteration, or inside a mask."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.losses.base import Loss
from regnet_lab.ops.pairs import resize_pair
from regnet_lab.types import Pair, Registration

GRID_KEYS = ("fixed", "moving", "displacement")
GRID_SUFFIXES = ("_labels", "_mask")


class DeepSupervision(Loss):
    """Weighted sum of a term over all fields the model returns, coarse to fine.

    At each level the pair is resized to the field's grid; displacements are in that grid's voxels.

    Args:
        term: The loss applied at each level.
        level_weights: One for each field, coarse to fine.
    """

    def __init__(self, term: Loss, level_weights: Sequence[float], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term, self.level_weights = term, list(level_weights)

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if len(self.level_weights) != len(out.fields):
            raise UserError(
                f"DeepSupervision has {len(self.level_weights)} weights but the model returns "
                f"{len(out.fields)} fields: give one weight for each field, coarse to fine."
            )
        total = out.warped.new_zeros(())
        for weight, u in zip(self.level_weights, out.fields, strict=True):
            level = resize_pair(pair, u.shape[2:])
            out_level = Registration([u], ops.warp(level["moving"], u))
            total = total + weight * self.term(level, out_level)
        return total


class UnrolledLoss(Loss):
    """Mean over levels of a term applied to the fields of an unrolled model (DIRV-Net).

    Consecutive fields on one grid are the units i = 1..U of a level l = 1..L:

        mean_l coarser^(L-l) sum_i w_i term(pair_l, u_li),
        w_i = exp(-(U-i) T) / sum_j exp(-(U-j) T).

    The pair is resized to the level's grid; displacements are in that grid's voxels.  Use
    ``coarser=2`` for an error in voxels, so that all levels have the same scale, and ``coarser=1``
    for a similarity.

    Args:
        finest_levels: Number of finest levels that count; null: all.
        coarse_level_factor: Factor of each level relative to the next finer one.
        temperature: T.  Zero: all units have the same weight (Kobler et al., arXiv 1906.05528, call
            T times the step tau).  Null: only the last unit of a level counts.
        temperature_step: Increase of T at each training step.
        max_temperature: Largest T.
    """

    heated: Tensor  # number of training steps so far

    def __init__(
        self,
        term: Loss,
        finest_levels: int | None = None,
        coarse_level_factor: float = 2.0,
        temperature: float | None = None,
        temperature_step: float = 0.0,
        max_temperature: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.term, self.finest_levels = term, finest_levels
        self.coarse_level_factor = coarse_level_factor
        self.start, self.temperature_step = temperature, temperature_step
        self.max_temperature = max_temperature
        self.register_buffer("heated", torch.zeros((), dtype=torch.long))

    def compute_unit_weights(self, units: int) -> list[float]:
        """Return the current weight w of each of a level's units."""
        if self.start is None:
            return [0.0] * (units - 1) + [1.0]
        temperature = self.start + self.temperature_step * int(self.heated)
        temperature = min(temperature, self.max_temperature)
        weights = [math.exp(-temperature * k) for k in reversed(range(units))]
        return [weight / sum(weights) for weight in weights]

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        levels = [list(units) for _, units in groupby(out.fields, lambda u: u.shape[2:])]
        levels = levels[-(self.finest_levels or len(levels)) :]
        terms = [
            self.coarse_level_factor**k * self.compute_level_loss(pair, units)
            for k, units in enumerate(reversed(levels))
        ]
        self.heated += self.training
        return torch.stack(terms).mean()

    def compute_level_loss(self, pair: Pair, units: list[Tensor]) -> Tensor:
        """Return the weighted sum of the term over the units of a level."""
        pair = resize_pair(pair, units[0].shape[2:])
        terms = [
            weight * self.term(pair, Registration([u], ops.warp(pair["moving"], u)))
            for weight, u in zip(self.compute_unit_weights(len(units)), units, strict=True)
            if weight
        ]
        return torch.stack(terms).sum()


def find_bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Return the smallest box that holds all nonzero voxels of a mask (B, 1, *spatial).

    The box of an empty mask is the whole grid.

    >>> mask = torch.zeros(1, 1, 5, 5)
    >>> mask[..., 1:3, 2:5] = 1
    >>> find_bounding_box(mask)
    (slice(1, 3, None), slice(2, 5, None))
    """
    occupied = mask.flatten(0, 1).any(0)
    if not occupied.any():
        return tuple(slice(None) for _ in occupied.shape)
    ends = occupied.nonzero().aminmax(dim=0)
    return tuple(slice(a, b + 1) for a, b in zip(ends.min.tolist(), ends.max.tolist(), strict=True))


class CroppedLoss(Loss):
    """A term evaluated in the bounding box of the batch's fixed masks, or everywhere without one.

    For patches, whose mask is the box in which a network predicts
    (:mod:`regnet_lab.data.patches`).  Landmarks are not passed on.
    """

    def __init__(self, term: Loss, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term = term

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if "fixed_mask" not in pair:
            return self.term(pair, out)
        box = find_bounding_box(pair["fixed_mask"])
        cropped = {
            key: ops.crop(x, box) if key in GRID_KEYS or key.endswith(GRID_SUFFIXES) else x
            for key, x in cast(dict[str, Tensor], pair).items()
            if not key.endswith("_points")
        }
        inner = Registration([ops.crop(out.displacement, box)], ops.crop(out.warped, box))
        return self.term(cast(Pair, cropped), inner)
