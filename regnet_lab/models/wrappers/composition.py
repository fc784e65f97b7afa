"""Models that transform or compose the displacement fields of other models."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.layers import Convolution, make_conv_block, zero_bias


class DiffeomorphicModel(nn.Module):
    """Integrates every field of ``model`` as a stationary velocity field up to time one.

    Scaling and squaring with ``integration_steps`` squarings (Dalca et al., MedIA 2019).
    """

    def __init__(self, model: nn.Module, integration_steps: int = 7) -> None:
        super().__init__()
        self.model, self.integration_steps = model, integration_steps

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return [ops.integrate(v, self.integration_steps) for v in self.model(fixed, moving)]


class ResidualRefinement(nn.Module):
    """Appends to the fields of ``model`` the last one plus a learned correction.

    u' = u + rho(conv_D(rho(conv_n(u)))), with 3^D kernels and leaky ReLUs rho of slope 0.2;
    2,611 parameters in 3D (published with FAIM, Kuang and Schmah).

    Args:
        channels: Channels n of the correction.
        detach_field: Do not propagate the gradient of u' to the model, which then needs a loss on
            its own field.
    """

    def __init__(
        self, model: nn.Module, ndim: int, channels: int = 16, detach_field: bool = False
    ) -> None:
        super().__init__()
        self.model, self.detach_field = model, detach_field
        self.refinement = nn.Sequential(
            make_conv_block(ndim, ndim, channels), make_conv_block(ndim, channels, ndim)
        )
        for layer in self.refinement.modules():
            if isinstance(layer, Convolution):
                nn.init.kaiming_normal_(layer.weight)
                zero_bias(layer)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        fields = self.model(fixed, moving)
        u = fields[-1].detach() if self.detach_field else fields[-1]
        return [*fields, u + self.refinement(u).float()]


class Chain(nn.Module):
    """Models in sequence, each registering the moving image warped by the previous ones.

    Returns the last model's fields, each composed with the previous displacement: an affine network
    followed by a deformable one gives their total displacement.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        first, *later = self.models.values()
        fields = first(fixed, moving)
        for model in later:
            total = ops.resize_field(fields[-1], fixed.shape[2:])
            residuals = model(fixed, ops.warp(moving, total))
            fields = [ops.compose(u, ops.resize_field(total, u.shape[2:])) for u in residuals]
        return fields


class MultiStage(nn.Module):
    """Models for decreasing downsampling factors, each starting from the previous displacement.

    Stage k receives the fixed image and the moving image warped by the total displacement u, both
    downsampled by ``factors[k]``, and predicts a residual r.  The new total is
    u' = (id + u) o (id + r) - id, or, as published with RegNet, u + r (Sokooti et al., 2019).
    Returns one field for each stage, in voxels of its grid.

    Args:
        shrink_factors: Downsampling factor of each stage, coarse to fine.
        compose: Compose the residual; false: add it.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        shrink_factors: Sequence[int] = (4, 2, 1),
        compose: bool = True,
    ) -> None:
        super().__init__()
        if len(stages) != len(shrink_factors):
            raise UserError(
                f"MultiStage has {len(stages)} stages and shrink_factors={list(shrink_factors)}: "
                "give one factor for each stage."
            )
        self.stages = nn.ModuleDict(stages)
        self.shrink_factors, self.compose = list(shrink_factors), compose

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        fields: list[Tensor] = []
        for factor, stage in zip(self.shrink_factors, self.stages.values(), strict=True):
            shape = [-(-n // factor) for n in fixed.shape[2:]]
            f, m = ops.resize(fixed, shape), ops.resize(moving, shape)
            if not fields:
                fields.append(ops.resize_field(stage(f, m)[-1], shape))
                continue
            total = ops.resize_field(fields[-1], shape)
            residual = ops.resize_field(stage(f, ops.warp(m, total))[-1], shape)
            fields.append(ops.compose(residual, total) if self.compose else total + residual)
        return fields


def compute_residual_std(fixed: Tensor, warped: Tensor) -> Tensor:
    """Compute the standard deviation of the residual image of every case, (B,)."""
    return (fixed - warped).float().flatten(1).std(1)


class IterativeRefinement(nn.Module):
    """Repeats a model on the moving image warped by the total displacement (DIRV-Net).

    With u the total displacement and v the model's result for (fixed, moving(x + u)), the new total
    is v(x) + u(x + v(x)).  The moving image is always warped once, by the total.  A case stops
    before the pass that would increase its ``stopping_measure``; the first pass always counts.

    Args:
        model: Any model whose fields have the same grids in every pass.
        stopping_measure: Stopping measure of (fixed, warped), one number a case as in
            :mod:`regnet_lab.ops.similarity`; null: the standard deviation of the residual image.
        stop_batch_together: Stop all cases of a batch at once, by the mean of the measure.
    """

    def __init__(
        self,
        model: nn.Module,
        max_passes: int = 15,
        stopping_measure: Callable[[Tensor, Tensor], Tensor] | None = None,
        stop_batch_together: bool = False,
    ) -> None:
        super().__init__()
        if max_passes < 1:
            raise UserError(
                f"max_passes={max_passes}: IterativeRefinement needs at least one pass."
            )
        self.model, self.max_passes = model, max_passes
        self.stopping_measure = stopping_measure or compute_residual_std
        self.stop_batch_together = stop_batch_together

    def iterate_passes(
        self, fixed: Tensor, moving: Tensor
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield the composed fields after each pass and their measure (B,), without end."""
        shape = fixed.shape[2:]
        total = fixed.new_zeros(len(fixed), len(shape), *shape)
        while True:
            residuals = self.model(fixed, ops.warp(moving, total))
            fields = [ops.compose(v, ops.resize_field(total, v.shape[2:])) for v in residuals]
            total = ops.resize_field(fields[-1], shape)
            yield fields, self.stopping_measure(fixed, ops.warp(moving, total)).detach()

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """Return the fields of each case's last counted pass, composed with all previous ones."""
        passes = self.iterate_passes(fixed, moving)
        best, lowest = next(passes)
        running = torch.ones_like(lowest, dtype=torch.bool)
        for _, (fields, level) in zip(range(1, self.max_passes), passes, strict=False):
            together = self.stop_batch_together
            running = running & (level.mean() <= lowest.mean() if together else level <= lowest)
            if not running.any():
                break
            mask = running.view(-1, *[1] * (fixed.ndim - 1))
            best = [torch.where(mask, u, best_u) for u, best_u in zip(fields, best, strict=True)]
            lowest = torch.where(running, level, lowest)
        return best
