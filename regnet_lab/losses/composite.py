"""Training of models that answer with a field for every iteration."""

import math
from itertools import groupby

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.ops.pairs import resized
from regnet_lab.types import Pair, Registration


class Unrolled(Loss):
    """A term applied to what an unrolled model gives after its units, level by level (DIRV-Net).

    Fields in a row on one grid are the units i = 1..U of a level l = 1..L:

        mean_l coarser^(L-l) sum_i w_i term(pair_l, u_li),
        w_i = exp(-(U-i) T) / sum_j exp(-(U-j) T),

    with the pair brought to the level's grid and everything in that grid's voxels.  For an error in
    voxels ``coarser=2`` makes levels alike, for a similarity ``coarser=1``.

    Args:
        term: The loss.
        levels: The finest levels that count; null: all.
        coarser: Factor for every level further up.
        temperature: T; zero: all units count alike (Kobler et al. call T times the step tau, arXiv
            1906.05528); null: only the last unit of a level counts.
        heating: What every training step adds to T.
        hottest: Where T stops.
        weight: Factor of the whole.
    """

    heated: Tensor  # training steps so far

    def __init__(
        self,
        term: Loss,
        levels: int | None = None,
        coarser: float = 2.0,
        temperature: float | None = None,
        heating: float = 0.0,
        hottest: float = 2.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.term, self.levels, self.coarser = term, levels, coarser
        self.start, self.heating, self.hottest = temperature, heating, hottest
        self.register_buffer("heated", torch.zeros((), dtype=torch.long))

    def shares(self, units: int) -> list[float]:
        """The weight w of every unit at present."""
        if self.start is None:
            return [0.0] * (units - 1) + [1.0]
        temperature = min(self.start + self.heating * int(self.heated), self.hottest)
        shares = [math.exp(-temperature * k) for k in reversed(range(units))]
        return [share / sum(shares) for share in shares]

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        levels = [list(units) for _, units in groupby(out.fields, lambda u: u.shape[2:])]
        levels = levels[-(self.levels or len(levels)) :]
        terms = [
            self.coarser**k * self.level(pair, units) for k, units in enumerate(reversed(levels))
        ]
        self.heated += self.training
        return torch.stack(terms).mean()

    def level(self, pair: Pair, units: list[Tensor]) -> Tensor:
        """Weighted sum over the units of a level."""
        pair = resized(pair, units[0].shape[2:])
        return torch.stack(
            [
                share * self.term(pair, Registration([u], ops.warp(pair["moving"], u)))
                for share, u in zip(self.shares(len(units)), units, strict=True)
                if share
            ]
        ).sum()


GRIDDED = ("fixed", "moving", "displacement")
ENDINGS = ("_labels", "_mask")


def bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask (B, 1, *spatial); everything if it is empty."""
    found = mask.flatten(0, 1).any(0)
    if not found.any():
        return tuple(slice(None) for _ in found.shape)
    ends = found.nonzero().aminmax(dim=0)
    return tuple(slice(a, b + 1) for a, b in zip(ends.min.tolist(), ends.max.tolist(), strict=True))


class Cropped(Loss):
    """A term looked at in the bounding box of the fixed masks of a batch; everywhere without one.

    For patches, whose mask is the box a network can answer on (:mod:`regnet_lab.data.patches`).
    Landmarks are left out.

    Args:
        term: The loss there.
        weight: Factor of the whole.
    """

    def __init__(self, term: Loss, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term = term

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if "fixed_mask" not in pair:
            return self.term(pair, out)
        box = bounding_box(pair["fixed_mask"])
        inner = {
            key: value[..., *box] if key in GRIDDED or key.endswith(ENDINGS) else value  # type: ignore
            for key, value in pair.items()
            if not key.endswith("_points")
        }
        cropped = Registration([out.displacement[..., *box]], out.warped[..., *box])  # type: ignore[index]
        return self.term(Pair(**inner), cropped)  # type: ignore[typeddict-item]
