"""One model after another."""

from collections.abc import Mapping

from torch import Tensor, nn

from regnet_lab import ops


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
