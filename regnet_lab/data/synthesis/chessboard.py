"""Gradient chessboards: DIRV-Net's training images, made in memory.

Published are three kinds: ``64`` and ``128`` (as many voxels along every axis, cells of 6 to 9) and
``64 dense`` (cells of 3 to 6).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab.data.synthesis.deformed_images import alone
from regnet_lab.data.synthesis.displacements.base import separable
from regnet_lab.data.synthesis.phantom_pairs import SPLITS
from regnet_lab.errors import UserError
from regnet_lab.types import Pair


def chessboard(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[int]) -> Tensor:
    """A board whose even and odd cells have each a grey level blended from corner to corner.

    Cell (i, j, ...) of (n_0, n_1, ...) is even or odd with i + j + ...; its level is the
    multilinear blend, at i_k / (n_k - 1), of 2^D random levels at the corners of its own parity.
    The last cells along an axis reach to the border.

    Args:
        rng: Source of cell size and levels.
        shape: Voxels.
        cells: Smallest and largest width of a cell, voxels, the same along all axes.

    Returns:
        (1, *shape) one of the levels k / 255, k = 0, ..., 254.
    """
    smallest, largest = cells
    width = int(rng.integers(smallest, largest, endpoint=True))
    levels = rng.integers(0, 255, (2, *[2] * len(shape)))  # at the corners, of even and odd cells
    index = [(torch.arange(n) // width).clamp(max=n // width - 1) for n in shape]
    blend = [torch.stack([i.max() - i, i], 1) / i.max() for i in index]  # (n_k, 2)
    even, odd = separable(torch.from_numpy(levels).float(), blend).round() / 255
    parity = torch.stack(torch.meshgrid(*index, indexing="ij")).sum(0) % 2
    return torch.where(parity == 0, even, odd)[None]


class Chessboards(Dataset[Pair]):
    """Boards, each with itself, that follow from (seed, split, index).

    Args:
        split: ``train``, ``val`` or ``test``; they share no board.
        ndim: Number of dimensions.
        shape: Voxels along every axis, or a list of one number for each.
        cells: Smallest and largest width of a cell, voxels.
        size: Number of boards in this split.
        seed: Another seed, other boards.

    Raises:
        UserError: The image is smaller than two cells along an axis.
    """

    def __init__(
        self,
        split: str,
        ndim: int,
        shape: int | Sequence[int] = 64,
        cells: Sequence[int] = (6, 9),
        size: int = 1000,
        seed: int = 0,
    ) -> None:
        self.shape = [shape] * ndim if isinstance(shape, int) else list(shape)
        self.split, self.cells, self.size, self.seed = split, cells, size, seed
        if len(self.shape) != ndim:
            raise UserError(f"shape={self.shape}: give {ndim} numbers, or one for all axes.")
        if min(cells) < 1 or min(self.shape) < 2 * max(cells):
            raise UserError(
                f"shape={self.shape} has no room for two cells of {max(cells)} voxels: "
                "enlarge shape or lower cells."
            )

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.size:
            raise IndexError(f"board {index} of {self.size}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        board = chessboard(rng, self.shape, self.cells)
        return alone(board, f"chessboard-{self.split}-{index:04d}")
