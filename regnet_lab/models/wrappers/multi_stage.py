"""Registration from coarse to fine, each stage with a model of its own."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError


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
