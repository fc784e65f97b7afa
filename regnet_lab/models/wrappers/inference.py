"""Large images, piece by piece."""

from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet_lab.errors import UserError


class Tiled(nn.Module):
    """Outside training, ask a model of bounded sight tile by tile; the field has no seams.

    A tile is shown with all that has influence on its field, and begins where the model's inner
    grids do, so that the field is that of the whole image to float rounding.  The memory needed is
    that of one image of ``tile + 2 model.reach`` voxels an axis, beside images and field.

    Args:
        model: Has ``reach`` and ``stride``, as :class:`regnet_lab.models.regnet_2017.PatchNetwork`.
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


class SliceWise(nn.Module):
    """Register volumes with a model of slices, every slice along the last axis on its own.

    Images (B, 1, *plane, n) give fields (B, D+1, *the model's grid in the plane, n) whose component
    along the last axis is zero; images with as many axes as ``model`` takes go straight to it.

    Args:
        model: Registers slices.
        ndim: Axes D of a slice.
        chunk: Slices registered at a time, to save memory; null: all of the batch.
    """

    def __init__(self, model: nn.Module, ndim: int = 2, chunk: int | None = None) -> None:
        super().__init__()
        self.model, self.ndim, self.chunk = model, ndim, chunk

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        if fixed.ndim - 2 == self.ndim:
            return self.model(fixed, moving)
        slices = [
            image.movedim(-1, 1).flatten(0, 1) for image in (fixed, moving)
        ]  # (B n, 1, *plane)
        size = self.chunk or len(slices[0])
        parts = [self.model(f, m) for f, m in zip(*(s.split(size) for s in slices), strict=True)]
        return [self.stacked(torch.cat(part), len(fixed)) for part in zip(*parts, strict=True)]

    def stacked(self, fields: Tensor, batch: int) -> Tensor:
        """Fields (B n, D, *grid) of slices as fields (B, D+1, *grid, n) of volumes."""
        u = fields.unflatten(0, (batch, -1)).movedim(1, -1)
        return torch.cat([u, torch.zeros_like(u[:, :1])], 1)


PREFIX = "model."  # of the model's weights in a checkpoint


class Pretrained(nn.Module):
    """A model with the weights of a run.

    Args:
        model: As the run had it.
        checkpoint: A file in the run's ``checkpoints``; null: the model as it is.

    Raises:
        UserError: The file is missing, no checkpoint, or of another model.
    """

    def __init__(self, model: nn.Module, checkpoint: str | None = None) -> None:
        super().__init__()
        self.model = model
        if checkpoint is not None:
            self.load(Path(checkpoint))

    def load(self, path: Path) -> None:
        """Take over the weights."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:
            raise UserError(f"{path}: cannot be read as a checkpoint; name another.") from error
        own = {k.removeprefix(PREFIX): w for k, w in state.items() if k.startswith(PREFIX)}
        try:
            self.model.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"{path}: holds the weights of another model than {type(self.model).__name__}."
            ) from error

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return self.model(fixed, moving)
