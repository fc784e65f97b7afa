"""Synthetic chessboard images with intensity gradients, the training images of DIRV-Net.

The paper uses three kinds: ``64`` and ``128`` (voxels along every axis, cells of 6 to 9 voxels) and
``64 dense`` (cells of 3 to 6 voxels).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab.data.datasets.base import GeneratedPairs
from regnet_lab.data.displacement_classes import expand_per_axis
from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.data.synthesis.displacements.base import apply_separable
from regnet_lab.errors import UserError
from regnet_lab.types import Pair


def make_chessboard(rng: Generator, shape: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Make a chessboard (1, *shape) whose even and odd cells each follow an intensity gradient.

    Cell (i, j, ...) of (n_0, n_1, ...) is even or odd like i + j + ...; its intensity is the
    multilinear interpolation, at i_k / (n_k - 1), of 2^D random corner values of its parity.
    Values are k / 255, k = 0, ..., 254.  The last cells along an axis extend to the border.
    ``cells`` is the smallest and the largest cell width in voxels, the same along all axes.
    """
    smallest, largest = cells
    width = int(rng.integers(smallest, largest, endpoint=True))
    levels = rng.integers(0, 255, (2, *[2] * len(shape)))  # corner values of even and odd cells
    index = [(torch.arange(n) // width).clamp(max=n // width - 1) for n in shape]
    blend = [torch.stack([i.max() - i, i], 1) / i.max() for i in index]  # (n_k, 2)
    even, odd = apply_separable(torch.from_numpy(levels).float(), blend).round() / 255
    parity = torch.stack(torch.meshgrid(*index, indexing="ij")).sum(0) % 2
    return torch.where(parity == 0, even, odd)[None]


@dataclass(eq=False, repr=False)
class Chessboards(GeneratedPairs):
    """Chessboard images, each paired with itself and determined by (seed, split, index)."""

    split: str  # ``train``, ``val`` or ``test``; splits have no images in common
    ndim: int  # number of dimensions
    shape: int | Sequence[int] = 64  # number of voxels along all axes, or one number per axis
    cell_size: Sequence[int] = (6, 9)  # smallest and largest cell width, voxels
    num_images: int = 1000  # number of images in this split
    seed: int = 0
    unit = "images"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_pairs, self.grid = self.num_images, list(expand_per_axis(self.shape, self.ndim))
        if len(self.grid) != self.ndim:
            raise UserError(f"shape={self.grid}: give {self.ndim} numbers, or one for all axes.")
        if min(self.cell_size) < 1 or min(self.grid) < 2 * max(self.cell_size):
            raise UserError(
                f"shape={self.grid} has no room for two cells of {max(self.cell_size)} voxels: "
                "enlarge shape or reduce cell_size."
            )

    def make_pair(self, index: int) -> Pair:
        chessboard = make_chessboard(self.make_rng(index), self.grid, self.cell_size)
        return make_self_pair(chessboard, f"chessboard-{self.split}-{index:04d}")
