"""Cropping, and resizing of images, labels and displacement fields over one field of view."""

from collections.abc import Sequence
from types import EllipsisType

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from regnet_lab.ops.precision import full_precision
from regnet_lab.ops.sampling import Field, Image, _expand_per_axis


def crop(x: Tensor, box: Sequence[slice]) -> Tensor:
    """Return the view of (..., *spatial) inside a box, one slice for each spatial axis.

    >>> crop(torch.arange(12).view(1, 1, 3, 4), [slice(1, 3), slice(0, 2)])
    tensor([[[[4, 5],
              [8, 9]]]])
    """
    index: list[EllipsisType | slice] = [..., *box]
    return x[tuple(index)]


@full_precision
def apply_along_axes(x: Image, matrices: Sequence[Tensor | None]) -> Float[Tensor, "b c *new"]:
    """Multiply every line along spatial axis k of (B, C, *n) by matrix k, (new_k, n_k) or None.

    None leaves the axis unchanged.

    >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> apply_along_axes(x, [None, torch.ones(1, 2)])
    tensor([[[[3.],
              [7.]]]])
    """
    for axis, matrix in enumerate(matrices, start=2):
        if matrix is not None:
            x = (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
    return x


def compute_resize_matrix(old: int, new: int, like: Tensor) -> Float[Tensor, "new old"]:
    """Compute the weights that resample an axis of ``old`` cells to ``new`` of equal total length.

    Smaller: each new cell is the average of the old cells it covers.  Larger: linear interpolation
    between old cell centers, constant beyond the outermost.
    """
    ratio = old / new
    cells = torch.arange(old, dtype=like.dtype, device=like.device)
    edge = torch.arange(new, dtype=like.dtype, device=like.device)[:, None] * ratio
    if new < old:
        overlap = torch.minimum(edge + ratio, cells + 1) - torch.maximum(edge, cells)
        return overlap.clamp(min=0) / ratio
    center = (edge + ratio / 2 - 0.5).clamp(0, old - 1)
    return (1 - (center - cells).abs()).clamp(min=0)


@full_precision
def resize(image: Image, shape: Sequence[int]) -> Float[Tensor, "b c *out"]:
    """Resample an image to another grid over the same field of view.

    Axes that become smaller are averaged over cells, axes that become larger are interpolated
    linearly.

    >>> resize(torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]]), (1, 2))
    tensor([[[[2., 6.]]]])
    """
    sizes = zip(image.shape[2:], shape, strict=True)
    weights = [None if old == new else compute_resize_matrix(old, new, image) for old, new in sizes]
    return apply_along_axes(image, weights)


def resize_nearest(labels: Shaped[Tensor, "b c *spatial"], shape: Sequence[int]) -> Tensor:
    """Resample labels to another grid over the same field of view, each center by its old cell."""
    for axis, (old, new) in enumerate(zip(labels.shape[2:], shape, strict=True), start=2):
        index = ((torch.arange(new, device=labels.device) + 0.5) * old / new).long()
        labels = labels.index_select(axis, index)
    return labels


@full_precision
def resize_field(u: Field, shape: Sequence[int]) -> Float[Tensor, "b d *out"]:
    """Resample a displacement field to another grid and rescale it to that grid's voxels.

    >>> resize_field(torch.ones(1, 2, 4, 4), (8, 4))[0, :, 0, 0]
    tensor([2., 1.])
    """
    factor = [new / old for new, old in zip(shape, u.shape[2:], strict=True)]
    return resize(u, shape) * _expand_per_axis(factor, u)
