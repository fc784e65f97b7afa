"""Instance optimization: fitting the displacement field or the network to a single pair.

An optimizer is called with the pair and the model and returns a displacement (1, D, *grid) in
voxels of its own grid.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.losses import Loss, Similarity, compute_objective
from regnet_lab.ops.pairs import apply_displacement, resize_pair
from regnet_lab.types import Pair, Registration, update_pair
from regnet_lab.utils.voxel_budget import enlarge_voxels

# of the objective with respect to one voxel's displacement, times the number of voxels; smaller
# gradients, such as those of rounding where an image is constant, give shorter steps
MIN_GRADIENT = 1e-3


def compute_finite_objective(losses: Mapping[str, Loss], pair: Pair, out: Registration) -> Tensor:
    """Compute the sum of weighted losses; raise UserError if it is not finite."""
    total = compute_objective(losses, pair, out)["loss"]
    if not torch.isfinite(total):
        raise UserError(
            f"{pair['name'][0]}: the objective of the instance optimization became "
            f"{total.item()}; lower optimizer.lr."
        )
    return total


def compute_deadline(seconds: float | None) -> float:
    """Return the value of the monotonic clock in so many seconds; None: infinity."""
    return time.monotonic() + (math.inf if seconds is None else seconds)


def minimize(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    lr: float,
    steps: int,
    deadline: float,
    epsilon: float = 1e-8,
    decay: float = 0.0,
) -> None:
    """Take ``steps`` steps of Adam, but stop once the monotonic clock has passed ``deadline``.

    Gradients below ``epsilon`` give shorter steps than ``lr``.  Over the last part ``decay`` of the
    steps the learning rate decreases linearly to zero.
    """
    optimizer = torch.optim.Adam(parameters, lr, eps=epsilon)
    for step in range(steps):
        if time.monotonic() > deadline:
            return
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (steps - step) / max(decay * steps, 1))
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()


def compute_level_shapes(
    shape: Sequence[int], spacing: Sequence[float], levels: int, max_voxels: int
) -> list[list[int]]:
    """Compute grid shapes over one field of view, coarse to fine, each twice as fine as the last.

    Axes with larger voxels (``spacing``, mm) than the others are not shrunk until those have become
    as large.  The finest shape has at most ``max_voxels``.

    >>> compute_level_shapes((64, 64, 10), (1.0, 1.0, 4.0), levels=3, max_voxels=10**6)
    [[16, 16, 10], [32, 32, 10], [64, 64, 10]]
    """
    finest = min(spacing)

    def shrink(factor: float) -> list[int]:
        axes = zip(shape, spacing, strict=True)
        return [max(min(n, 2), round(n * s / max(s, factor * finest))) for n, s in axes]

    factor = enlarge_voxels(1.0, lambda factor: math.prod(shrink(factor)), max_voxels)
    return [shrink(factor * 2**k) for k in reversed(range(levels))]


def restrict_mask_to_overlap(pair: Pair, u: Tensor) -> Pair:
    """Remove from the fixed mask all voxels that ``u`` maps outside the moving mask."""
    if "moving_mask" not in pair:
        return pair
    inside = ops.warp(pair["moving_mask"].float(), u.detach(), padding="zeros") > 0.5
    fixed_mask = pair.get("fixed_mask", torch.ones_like(inside)) > 0
    return update_pair(pair, fixed_mask=fixed_mask & inside)


@dataclass
class FieldOptimizer:
    """Adam on the displacement field, starting from the model's, on grids from coarse to fine.

    The coarse levels recover large displacements; after a good network fewer are needed.

    Args:
        losses: Terms of the objective by name.  On each level the pair and displacements are on
            the grid of the level, in its voxels.
        steps: Number of steps on each level, coarse to fine.
        lr: Learning rate, about the voxels of the level's grid per step.
        max_voxels: Largest number of voxels of the finest grid; bounds time and memory.
        proximal_weight: Weight of mean |u - u_model|^2, in voxels, which keeps u close to the
            field of the model.
        max_seconds: Time limit; None: all steps.
        decay: Last part of the steps on the finest grid over which the learning rate decreases to
            zero, so that no jitter of its size remains.

    The optimization starts from no displacement, and ends with none, where that has a smaller
    objective than the field of the model, or the result: images that are already equal stay.
    """

    losses: Mapping[str, Loss]
    steps: Sequence[int] = (50, 50, 50, 30)
    lr: float = 0.2
    max_voxels: int = 1_500_000
    proximal_weight: float = 0.0
    max_seconds: float | None = None
    decay: float = 0.0

    def __call__(self, pair: Pair, model: nn.Module) -> Tensor:
        """Optimize the field of the model for one pair."""
        deadline = compute_deadline(self.max_seconds)
        with torch.no_grad():
            predicted = apply_displacement(pair, model(pair["fixed"], pair["moving"])).displacement
        spacing, shape = pair["spacing"][0].tolist(), pair["fixed"].shape[2:]
        shapes = compute_level_shapes(shape, spacing, len(self.steps), self.max_voxels)
        pairs = [resize_pair(pair, level_shape) for level_shape in shapes]
        u = self.require_gain(pairs[0], ops.resize_field(predicted, shapes[0]))
        for level, (level_pair, steps) in enumerate(zip(pairs, self.steps, strict=True)):
            u = ops.resize_field(u, shapes[level])
            decay = self.decay if level == len(pairs) - 1 else 0.0
            u = self.optimize_level(level_pair, u, predicted, steps, deadline, decay)
        return self.require_gain(pairs[-1], u)

    def compute_objective(self, pair: Pair, u: Tensor) -> Tensor:
        """Compute the weighted sum of the losses for a displacement on the grid of ``pair``."""
        out = Registration([u], ops.warp(pair["moving"], u))
        masked = any(isinstance(t, Similarity) and t.masked for t in self.losses.values())
        pair = restrict_mask_to_overlap(pair, u) if masked else pair
        return compute_finite_objective(self.losses, pair, out)

    @torch.no_grad()
    def require_gain(self, pair: Pair, u: Tensor) -> Tensor:
        """Return ``u``, or zero if no displacement at all has a smaller objective."""
        zero = torch.zeros_like(u)
        return u if self.compute_objective(pair, u) < self.compute_objective(pair, zero) else zero

    def optimize_level(
        self,
        pair: Pair,
        u: Tensor,
        predicted: Tensor,
        steps: int,
        deadline: float,
        decay: float = 0.0,
    ) -> Tensor:
        """Optimize ``u`` on the grid of ``pair``; ``predicted`` is the field of the model."""
        anchor = ops.resize_field(predicted, u.shape[2:])
        u = u.detach().clone().requires_grad_()

        def objective() -> Tensor:
            total = self.compute_objective(pair, u)
            if self.proximal_weight:
                total = total + self.proximal_weight * (u - anchor).square().sum(1).mean()
            return total

        epsilon = MIN_GRADIENT / u[0, 0].numel()
        minimize(objective, [u], self.lr, steps, deadline, epsilon, decay)
        return u.detach()


@dataclass
class NetworkOptimizer:
    """Adam on a copy of the network's weights, so that its output stays a field of the network.

    Args:
        losses: Terms of the objective by name.
        max_seconds: Time limit; None: all steps.
    """

    losses: Mapping[str, Loss]
    steps: int = 50
    lr: float = 1e-4
    max_seconds: float | None = None

    def __call__(self, pair: Pair, model: nn.Module) -> Tensor:
        """Optimize the network for one pair; raise UserError if the model has no weights."""
        deadline, tuned = compute_deadline(self.max_seconds), copy.deepcopy(model)
        weights = [w for w in tuned.parameters() if w.requires_grad]
        if not weights:
            raise UserError("optimizer=network needs a trained network: give run=<folder>.")

        def register() -> Registration:
            return apply_displacement(pair, tuned(pair["fixed"], pair["moving"]))

        def objective() -> Tensor:
            return compute_finite_objective(self.losses, pair, register())

        minimize(objective, weights, self.lr, self.steps, deadline)
        with torch.no_grad():
            return register().displacement
