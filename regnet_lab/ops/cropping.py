"""Cropping of images."""

from collections.abc import Sequence
from types import EllipsisType

from torch import Tensor


def crop(x: Tensor, box: Sequence[slice]) -> Tensor:
    """Return the view of (..., *spatial) inside a box, one slice for each spatial axis.

    >>> import torch
    >>> crop(torch.arange(12).view(1, 1, 3, 4), [slice(1, 3), slice(0, 2)])
    tensor([[[[4, 5],
              [8, 9]]]])
    """
    index: list[EllipsisType | slice] = [..., *box]
    return x[tuple(index)]
