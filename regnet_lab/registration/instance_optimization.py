"""Fitting the answer to one pair: gradient steps on the field, or on the network, for it alone.

A refinement is called with the pair and the model and returns a displacement (1, D, *grid) in
voxels of its own grid.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.losses import Loss
from regnet_lab.ops.pairs import registered, resized
from regnet_lab.types import Pair, Registration


def objective(losses: Mapping[str, Loss], pair: Pair, out: Registration) -> Tensor:
    """Sum of weight times term.

    Raises:
        UserError: It is not finite.
    """
    total = torch.stack([term.weight * term(pair, out) for term in losses.values()]).sum()
    if not torch.isfinite(total):
        raise UserError(
            f"{pair['name'][0]}: the objective of refine became {total.item()}; lower refine.rate."
        )
    return total


def steps(count: int, deadline: float) -> Iterator[int]:
    """Numbers from 0, ``count`` of them or until the clock strikes."""
    for step in range(count):
        if time.monotonic() > deadline:
            return
        yield step


def _deadline(seconds: float | None) -> float:
    return time.monotonic() + (math.inf if seconds is None else seconds)


def level_shapes(
    shape: Sequence[int], spacing: Sequence[float], levels: int, largest: int
) -> list[list[int]]:
    """Grids over one field of view, coarse to fine, each twice as fine as the one before.

    The finest has at most ``largest`` voxels.  An axis with larger voxels than the others keeps
    them until those have grown as large.
    """
    finest = min(spacing)

    def at(factor: float) -> list[int]:
        sides = zip(shape, spacing, strict=True)
        return [max(2, round(n * s / max(s, factor * finest))) for n, s in sides]

    factor = 1.0
    while math.prod(at(factor)) > largest:
        factor *= 1.02
    return [at(factor * 2**k) for k in reversed(range(levels))]


def counted(pair: Pair, u: Tensor) -> Pair:
    """The pair whose fixed mask leaves out what ``u`` takes beyond the moving image's mask."""
    if "moving_mask" not in pair:
        return pair
    there = ops.warp(pair["moving_mask"].float(), u.detach(), padding="zeros") > 0.5
    ours = pair.get("fixed_mask", torch.ones_like(there)) > 0
    return Pair(**(pair | {"fixed_mask": ours & there}))


class FieldOptimised:
    """Adam on the displacement itself, from the model's answer, on grids from coarse to fine.

    Args:
        losses: Named terms of the objective; on each level the pair is on the level's grid, in
            whose voxels displacements are.
        steps: Of each level, coarse to fine.
        rate: Voxels of the level's grid by which a step moves, about.
        largest: Voxels of the finest grid, at most: what bounds time and memory.
        pull: Weight of mean |u - u_model|^2, in voxels, against forgetting what a network learned.
        seconds: Time after which to stop, wherever it is; null: after all steps.

    The coarse levels find what lies far away; a good answer of a network needs fewer of them.
    """

    def __init__(
        self,
        losses: Mapping[str, Loss],
        steps: Sequence[int] = (50, 50, 50, 30),
        rate: float = 0.2,
        largest: int = 1_500_000,
        pull: float = 0.0,
        seconds: float | None = None,
    ) -> None:
        self.losses, self.steps, self.rate = dict(losses), list(steps), rate
        self.largest, self.pull, self.seconds = largest, pull, seconds
        self.masked = any(getattr(term, "masked", False) for term in losses.values())

    def __call__(self, pair: Pair, model: nn.Module) -> Tensor:
        deadline = _deadline(self.seconds)
        with torch.no_grad():
            answer = registered(pair, model(pair["fixed"], pair["moving"])).displacement
        spacing, shape = pair["spacing"][0].tolist(), pair["fixed"].shape[2:]
        shapes = level_shapes(shape, spacing, len(self.steps), self.largest)
        u = ops.resize_field(answer, shapes[0])
        for size, count in zip(shapes, self.steps, strict=True):
            at = resized(pair, size)
            u = self.level(at, ops.resize_field(u, size), answer, count, deadline)
        return u

    def level(self, pair: Pair, u: Tensor, answer: Tensor, count: int, deadline: float) -> Tensor:
        """Some steps on one grid."""
        home = ops.resize_field(answer, u.shape[2:])
        u = u.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([u], self.rate)
        for _ in steps(count, deadline):
            out = Registration([u], ops.warp(pair["moving"], u))
            at = counted(pair, u) if self.masked else pair
            total = objective(self.losses, at, out)
            if self.pull:
                total = total + self.pull * (u - home).square().sum(1).mean()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return u.detach()


class NetworkOptimised:
    """Adam on a copy of the model's weights, so that its answer stays one that it can give.

    Args:
        losses: Named terms of the objective.
        steps: How many.
        rate: Of learning.
        seconds: Time after which to stop; null: after all steps.
    """

    def __init__(
        self,
        losses: Mapping[str, Loss],
        steps: int = 50,
        rate: float = 1e-4,
        seconds: float | None = None,
    ) -> None:
        self.losses, self.steps = dict(losses), steps
        self.rate, self.seconds = rate, seconds

    def __call__(self, pair: Pair, model: nn.Module) -> Tensor:
        """Raises UserError if the model has no weights."""
        deadline, tuned = _deadline(self.seconds), copy.deepcopy(model)
        weights = [w for w in tuned.parameters() if w.requires_grad]
        if not weights:
            raise UserError("refine=network needs a trained network: give run=<folder>.")
        optimizer = torch.optim.Adam(weights, self.rate)
        for _ in steps(self.steps, deadline):
            out = registered(pair, tuned(pair["fixed"], pair["moving"]))
            optimizer.zero_grad()
            objective(self.losses, pair, out).backward()
            optimizer.step()
        with torch.no_grad():
            return registered(pair, tuned(pair["fixed"], pair["moving"])).displacement
