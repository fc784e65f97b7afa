"""Volumes, slice by slice."""

import torch
from torch import Tensor, nn


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
