"""Large images, piece by piece."""

from itertools import product

import torch
from torch import Tensor, nn

from regnet_lab.errors import UserError


class Tiled(nn.Module):
    """Outside training, ask a model of bounded sight tile by tile; the field has no seams.

    A tile is shown with all that has influence on its field, and begins where the model's inner
    grids do, so that the field is that of the whole image to float rounding.  The memory needed is
    that of one image of ``tile + 2 model.reach`` voxels an axis, beside images and field.

    Args:
        model: Has ``reach`` and ``stride``, as :class:`regnet_lab.models.regnet.PatchNetwork`.
        tile: Voxels along each axis; null: the whole image at once.

    Raises:
        UserError: A tile is smaller than the model's stride.
    """

    def __init__(self, model: nn.Module, tile: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.stride = int(model.stride)  # type: ignore[arg-type]
        self.reach = -(-int(model.reach) // self.stride) * self.stride  # type: ignore[arg-type]
        self.step = tile and tile // self.stride * self.stride
        if self.step == 0:
            raise UserError(f"tile={tile} is too small: give {self.stride} voxels at least.")

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        if self.training or self.step is None:
            return self.model(fixed, moving)
        shape = fixed.shape[2:]
        u = fixed.new_empty(len(fixed), len(shape), *shape, dtype=torch.float32)
        for corner in product(*(range(0, n, self.step) for n in shape)):
            tile = [slice(c, min(c + self.step, n)) for c, n in zip(corner, shape, strict=True)]
            seen = [
                slice(max(t.start - self.reach, 0), min(t.stop + self.reach, n))
                for t, n in zip(tile, shape, strict=True)
            ]
            within = [
                slice(t.start - s.start, t.stop - s.start) for t, s in zip(tile, seen, strict=True)
            ]
            answer = self.model(fixed[..., *seen], moving[..., *seen])[-1]  # type: ignore[index]
            u[..., *tile] = answer[..., *within]  # type: ignore[index]
        return [u]
