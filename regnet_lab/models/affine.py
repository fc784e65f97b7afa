"""An affine map from a small network: a spatial transformer's localisation network.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial transformer networks, NeurIPS 2015
(arXiv 1506.02025).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import activated

CELLS = 3  # the features are averaged into so many cells along each axis


class Affine(nn.Module):
    """u(x) = A (x - c) + s t about the image's centre c; s is half its longest side, in voxels.

    Strided convolutions, averages over 3^D cells, one linear layer that gives A and t; being of
    one size in these units, all of their numbers learn alike.

    Args:
        ndim: 2 or 3.
        down: Widths of the strided convolutions.
        deviation: Standard deviation of the linear layer's first weights.
    """

    def __init__(
        self, ndim: int, down: Sequence[int] = (16, 32, 32, 32), deviation: float = 1e-3
    ) -> None:
        super().__init__()
        widths = [2, *down]
        self.ndim = ndim
        self.down = nn.Sequential(
            *(activated(ndim, before, after, 2) for before, after in pairwise(widths))
        )
        self.head = nn.Linear(widths[-1] * CELLS**ndim, ndim * (ndim + 1))
        nn.init.normal_(self.head.weight, std=deviation)
        nn.init.zeros_(self.head.bias)

    def matrix(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """(B, D + 1, D + 1) voxel-to-voxel map x -> x + u(x)."""
        features = self.down(torch.cat([fixed, moving], 1))
        cells = ops.resize(features, [CELLS] * self.ndim).flatten(1)
        change = self.head(cells).float().view(-1, self.ndim, self.ndim + 1)
        a, t = change[..., :-1], change[..., -1:]
        shape = a.new_tensor(fixed.shape[2:])
        offset = t * shape.max() / 2 - a @ ((shape - 1) / 2)[:, None]
        last = a.new_zeros(len(a), 1, self.ndim + 1)
        return torch.cat([torch.cat([a, offset], 2), last], 1) + torch.eye(self.ndim + 1).to(a)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return [ops.affine_field(self.matrix(fixed, moving), fixed.shape[2:])]
