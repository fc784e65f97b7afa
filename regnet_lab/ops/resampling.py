"""Resize images, label maps and displacement fields to another grid of the same field of view."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regnet_lab.ops.sampling import Field, Image, _per_axis, full_precision


def _resampling(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """Weights that carry an axis of ``old`` cells to ``new`` ones of the same total length.

    Down: each new cell is the average of the old ones it covers.  Up: linear interpolation
    between old centres, constant beyond the outermost.
    """
    ratio = old / new
    cells = torch.arange(old, dtype=like.dtype, device=like.device)
    edge = torch.arange(new, dtype=like.dtype, device=like.device)[:, None] * ratio
    if new < old:
        overlap = torch.minimum(edge + ratio, cells + 1) - torch.maximum(edge, cells)
        return overlap.clamp(min=0) / ratio
    centre = (edge + ratio / 2 - 0.5).clamp(0, old - 1)
    return (1 - (centre - cells).abs()).clamp(min=0)


@full_precision
def resize(image: Image, shape: Sequence[int]) -> Float[Tensor, "b c *out"]:
    """The same field of view on another grid: cell averages going down, linear going up."""
    for axis, (old, new) in enumerate(zip(image.shape[2:], shape, strict=True), start=2):
        if old != new:
            image = (image.movedim(axis, -1) @ _resampling(old, new, image).T).movedim(-1, axis)
    return image


def resize_nearest(labels: Shaped[Tensor, "b c *spatial"], shape: Sequence[int]) -> Tensor:
    """The same field of view on another grid, every new centre taking the cell it falls in."""
    for axis, (old, new) in enumerate(zip(labels.shape[2:], shape, strict=True), start=2):
        index = ((torch.arange(new, device=labels.device) + 0.5) * old / new).long()
        labels = labels.index_select(axis, index)
    return labels


@full_precision
def resize_field(u: Field, shape: Sequence[int]) -> Float[Tensor, "b d *out"]:
    """Carry a displacement to another grid and express it in that grid's voxels."""
    factor = [new / old for new, old in zip(shape, u.shape[2:], strict=True)]
    return resize(u, shape) * _per_axis(factor, u)
