"""One model after another."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.layers import Convolution, activated


class Chain(nn.Module):
    """Each model registers the moving image as the models before it left it; fields are composed.

    The answer is the last model's fields, every level composed with what went before, so that an
    affine network in front of a deformable one gives their total displacement.

    Args:
        models: By name, in order.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        first, *others = self.models.values()
        fields = first(fixed, moving)
        for model in others:
            before = ops.resize_field(fields[-1], fixed.shape[2:])
            after = model(fixed, ops.warp(moving, before))
            fields = [ops.compose(u, ops.resize_field(before, u.shape[2:])) for u in after]
        return fields


def spread(fixed: Tensor, warped: Tensor) -> Tensor:
    """Standard deviation of the residual image of every case, (B,)."""
    return (fixed - warped).float().flatten(1).std(1)


class Repeated(nn.Module):
    """Register, warp the moving image by the total displacement, register what is left, compose.

    With u the total so far and v the model's answer to (fixed, moving(x + u)), the new total is
    v(x) + u(x + v(x)); moving is always warped by the total, never by one field after another.  A
    case stops before the pass that would raise its ``measure`` (DIRV-Net's recurrent refinement);
    the first pass always counts.

    Args:
        model: Any model; its fields must share their grids from pass to pass.
        times: Most passes.
        measure: What must not rise, one number a case of (fixed, warped), as in
            :mod:`regnet_lab.ops.similarity`; null: the spread of the residual.
        together: Stop all cases of a batch at once, by the mean of the measure.
    """

    def __init__(
        self,
        model: nn.Module,
        times: int = 15,
        measure: Callable[[Tensor, Tensor], Tensor] | None = None,
        together: bool = False,
    ) -> None:
        super().__init__()
        if times < 1:
            raise UserError(f"times={times}: Repeated needs at least one pass.")
        self.model, self.times, self.together = model, times, together
        self.measure = measure or spread

    def passes(self, fixed: Tensor, moving: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The composed fields after every pass, and the measure (B,) they lead to; never stops."""
        shape = fixed.shape[2:]
        total = fixed.new_zeros(len(fixed), len(shape), *shape)
        while True:
            answers = self.model(fixed, ops.warp(moving, total))
            fields = [ops.compose(v, ops.resize_field(total, v.shape[2:])) for v in answers]
            total = ops.resize_field(fields[-1], shape)
            yield fields, self.measure(fixed, ops.warp(moving, total)).detach()

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """The fields of the last pass that counts, each composed with all before it."""
        passes = self.passes(fixed, moving)
        best, lowest = next(passes)
        running = torch.ones_like(lowest, dtype=torch.bool)
        for _, (fields, level) in zip(range(1, self.times), passes, strict=False):
            fell = level.mean() <= lowest.mean() if self.together else level <= lowest
            running &= fell
            if not running.any():
                break
            keep = running.view(-1, *[1] * (fixed.ndim - 1))
            best = [torch.where(keep, new, old) for new, old in zip(fields, best, strict=True)]
            lowest = torch.where(running, level, lowest)
        return best


class MultiStage(nn.Module):
    """Register shrunken images, then, from where that leads, larger ones.

    Stage k sees the fixed image and the moving image warped by what the stages before found, both
    averaged to ``factors[k]``-fold voxels, and answers with a residual r; the total u becomes
    u' = (id + u) o (id + r) - id, or, as RegNet published it, u + r (Sokooti et al., 2019).

    Args:
        stages: Models by name, coarse to fine.
        factors: Voxels an axis in one of the stage's, coarse to fine.
        compose: False: add the residual.

    One field a stage, in voxels of its grid.

    Raises:
        UserError: There is not one factor for each stage.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        factors: Sequence[int] = (4, 2, 1),
        compose: bool = True,
    ) -> None:
        super().__init__()
        if len(stages) != len(factors):
            raise UserError(
                f"MultiStage has {len(stages)} stages and factors={list(factors)}: give each a "
                "factor."
            )
        self.stages, self.factors, self.compose = nn.ModuleDict(stages), list(factors), compose

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        fields: list[Tensor] = []
        for factor, stage in zip(self.factors, self.stages.values(), strict=True):
            shape = [-(-n // factor) for n in fixed.shape[2:]]
            still, mobile = ops.resize(fixed, shape), ops.resize(moving, shape)
            if not fields:
                fields.append(ops.resize_field(stage(still, mobile)[-1], shape))
                continue
            total = ops.resize_field(fields[-1], shape)
            residual = ops.resize_field(stage(still, ops.warp(mobile, total))[-1], shape)
            fields.append(ops.compose(residual, total) if self.compose else total + residual)
        return fields


class Refined(nn.Module):
    """Append to the fields of ``model`` its last one with a learned correction added.

    u' = u + rho(conv_D(rho(conv_n(u)))), 3^D kernels and leaky rectifiers rho of slope 0.2;
    2,611 parameters in 3D (published with FAIM, Kuang and Schmah).

    Args:
        model: Gives the field u.
        ndim: 2 or 3.
        channels: Width n of the correction.
        detached: Let u' teach the correction alone; the model then needs a loss on its own field,
            as ``loss=refined`` has, and would otherwise learn nothing.
    """

    def __init__(
        self, model: nn.Module, ndim: int, channels: int = 16, detached: bool = False
    ) -> None:
        super().__init__()
        self.model, self.detached = model, detached
        self.refinement = nn.Sequential(
            activated(ndim, ndim, channels), activated(ndim, channels, ndim)
        )
        for layer in self.refinement.modules():
            if isinstance(layer, Convolution):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        fields = self.model(fixed, moving)
        u = fields[-1].detach() if self.detached else fields[-1]
        return [*fields, u + self.refinement(u).float()]


class Diffeomorphic(nn.Module):
    """Take every field of ``model`` for a stationary velocity and return its flow at time one.

    Scaling and squaring with ``steps`` squarings (Dalca et al., MedIA 2019).
    """

    def __init__(self, model: nn.Module, steps: int = 7) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return [ops.integrate(v, self.steps) for v in self.model(fixed, moving)]
