"""Models that apply another model to other inputs, or with other weights."""

from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.regnet_2017 import PatchNetwork
from regnet_lab.utils.paths import NETWORK_PREFIX


class TiledModel(nn.Module):
    """Outside training, runs a model with a bounded receptive field tile by tile, without seams.

    Each tile is extended by everything that influences its field and is aligned with the model's
    inner grids: the field equals that of the whole image up to float rounding.  The memory needed
    is that of one image of ``tile + 2 model.influence_radius`` voxels an axis.

    Args:
        model: A :class:`regnet_lab.models.regnet_2017.PatchNetwork`.
        tile_size: Voxels along each axis; null: the whole image at once.
    """

    def __init__(self, model: PatchNetwork, tile_size: int | None = None) -> None:
        super().__init__()
        self.model, stride = model, model.stride
        self.influence_radius = -(-model.influence_radius // stride) * stride
        self.step = tile_size and tile_size // stride * stride
        if self.step == 0:
            raise UserError(f"tile_size={tile_size} is too small: give {stride} voxels at least.")

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        if self.training or self.step is None:
            return self.model(fixed, moving)
        shape, radius = fixed.shape[2:], self.influence_radius
        u = fixed.new_empty(len(fixed), len(shape), *shape, dtype=torch.float32)
        for corner in product(*(range(0, n, self.step) for n in shape)):
            tile = [slice(c, min(c + self.step, n)) for c, n in zip(corner, shape, strict=True)]
            starts = [max(t.start - radius, 0) for t in tile]
            sides = [*zip(tile, starts, shape, strict=True)]
            extended = [slice(start, min(t.stop + radius, n)) for t, start, n in sides]
            inner = [slice(t.start - start, t.stop - start) for t, start, _ in sides]
            field = self.model(ops.crop(fixed, extended), ops.crop(moving, extended))[-1]
            ops.crop(u, tile).copy_(ops.crop(field, inner))
        return [u]


class SliceWiseModel(nn.Module):
    """Applies a 2D model to volumes, to every slice along the last axis on its own.

    Images (B, 1, *plane, n) give fields (B, D+1, *the model's grid in the plane, n) whose component
    along the last axis is zero.  Images with as many axes as ``model`` takes are passed on.

    Args:
        ndim: Axes D of a slice.
        slices_per_batch: Slices registered at a time, to save memory; null: all of the batch.
    """

    def __init__(
        self, model: nn.Module, ndim: int = 2, slices_per_batch: int | None = None
    ) -> None:
        super().__init__()
        self.model, self.ndim, self.slices_per_batch = model, ndim, slices_per_batch

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        if fixed.ndim - 2 == self.ndim:
            return self.model(fixed, moving)
        slices = [image.movedim(-1, 1).flatten(0, 1) for image in (fixed, moving)]  # (B n, 1, ...)
        size = self.slices_per_batch or len(slices[0])
        chunks = zip(*(s.split(size) for s in slices), strict=True)
        results = zip(*[self.model(f, m) for f, m in chunks], strict=True)
        fields = [torch.cat(parts).unflatten(0, (len(fixed), -1)) for parts in results]
        fields = [u.movedim(1, -1) for u in fields]  # (B, D, *grid, n)
        return [torch.cat([u, torch.zeros_like(u[:, :1])], 1) for u in fields]


class PretrainedModel(nn.Module):
    """A model with the weights of a training run.

    Args:
        model: The model of the run.
        checkpoint: A file in the run's ``checkpoints``; null: the model as it is.
    """

    def __init__(self, model: nn.Module, checkpoint: str | None = None) -> None:
        super().__init__()
        self.model = model
        if checkpoint is not None:
            self.load_weights(Path(checkpoint))

    def load_weights(self, path: Path) -> None:
        """Load the model's weights from a checkpoint of a whole training module."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:
            raise UserError(f"{path} is not a readable checkpoint; choose another file.") from error
        weights = {
            key.removeprefix(NETWORK_PREFIX): tensor
            for key, tensor in state.items()
            if key.startswith(NETWORK_PREFIX)
        }
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"{path} has the weights of another model than {type(self.model).__name__}."
            ) from error

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return self.model(fixed, moving)
