"""Synthetic chessboard images with intensity gradients, the training images of DIRV-Net.

The paper uses three kinds: ``64`` and ``128`` (voxels along every axis, cells of 6 to 9 voxels) and
``64 dense`` (cells of 3 to 6 voxels).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regnet_lab.data.datasets.base import PairDataset
from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.data.synthesis.displacements.base import apply_separable
from regnet_lab.data.synthesis.phantom_pairs import SPLITS
from regnet_lab.errors import UserError
from regnet_lab.types import Pair


def make_chessboard(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[int]) -> Tensor:
    """Make a chessboard whose even and odd cells each follow an intensity gradient.

    Cell (i, j, ...) of (n_0, n_1, ...) is even or odd like i + j + ...; its intensity is the
    multilinear interpolation, at i_k / (n_k - 1), of 2^D random corner values of its parity.
    The last cells along an axis extend to the border.

    Args:
        rng: Random generator.
        shape: Image shape, voxels.
        cells: Smallest and largest cell width, voxels, the same along all axes.

    Returns:
        (1, *shape) image with values k / 255, k = 0, ..., 254.
    """
    smallest, largest = cells
    width = int(rng.integers(smallest, largest, endpoint=True))
    levels = rng.integers(0, 255, (2, *[2] * len(shape)))  # corner values of even and odd cells
    index = [(torch.arange(n) // width).clamp(max=n // width - 1) for n in shape]
    blend = [torch.stack([i.max() - i, i], 1) / i.max() for i in index]  # (n_k, 2)
    even, odd = apply_separable(torch.from_numpy(levels).float(), blend).round() / 255
    parity = torch.stack(torch.meshgrid(*index, indexing="ij")).sum(0) % 2
    return torch.where(parity == 0, even, odd)[None]


class Chessboards(PairDataset):
    """Chessboard images, each paired with itself and determined by (seed, split, index).

    Args:
        split: ``train``, ``val`` or ``test``; splits have no images in common.
        ndim: Number of dimensions.
        shape: Number of voxels along all axes, or one number per axis.
        cell_size: Smallest and largest cell width, voxels.
        num_images: Number of images in this split.
        seed: Random seed.

    Raises:
        UserError: The image is smaller than two cells along an axis.
    """

    def __init__(
        self,
        split: str,
        ndim: int,
        shape: int | Sequence[int] = 64,
        cell_size: Sequence[int] = (6, 9),
        num_images: int = 1000,
        seed: int = 0,
    ) -> None:
        self.shape = [shape] * ndim if isinstance(shape, int) else list(shape)
        self.split, self.cell_size, self.num_images, self.seed = split, cell_size, num_images, seed
        if len(self.shape) != ndim:
            raise UserError(f"shape={self.shape}: give {ndim} numbers, or one for all axes.")
        if min(cell_size) < 1 or min(self.shape) < 2 * max(cell_size):
            raise UserError(
                f"shape={self.shape} has no room for two cells of {max(cell_size)} voxels: "
                "enlarge shape or reduce cell_size."
            )

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.num_images:
            raise IndexError(f"index {index} is out of range for {self.num_images} images")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        board = make_chessboard(rng, self.shape, self.cell_size)
        return make_self_pair(board, f"chessboard-{self.split}-{index:04d}")
