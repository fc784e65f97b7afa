"""Affine registration by a small network: a spatial transformer's localisation network.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial transformer networks, NeurIPS 2015
(arXiv 1506.02025).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import make_conv_block

POOLED_SIZE = 3  # cells along each axis to which features are averaged


class Affine(nn.Module):
    """u(x) = A (x - c) + s t about the image's centre c; s is half its longest side, in voxels.

    Strided convolutions, averages over 3^D cells, and a linear layer that predicts A and t, whose
    entries have the same scale in these units.

    Args:
        ndim: 2 or 3.
        down: Channels of the strided convolutions.
        init_std: Standard deviation of the linear layer's initial weights.
    """

    def __init__(
        self, ndim: int, down: Sequence[int] = (16, 32, 32, 32), init_std: float = 1e-3
    ) -> None:
        super().__init__()
        widths = [2, *down]
        self.ndim = ndim
        self.down = nn.Sequential(
            *(make_conv_block(ndim, before, after, 2) for before, after in pairwise(widths))
        )
        self.head = nn.Linear(widths[-1] * POOLED_SIZE**ndim, ndim * (ndim + 1))
        nn.init.normal_(self.head.weight, std=init_std)
        nn.init.zeros_(self.head.bias)

    def predict_matrix(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Predict the voxel-to-voxel matrix (B, D + 1, D + 1) of x -> x + u(x)."""
        features = self.down(torch.cat([fixed, moving], 1))
        cells = ops.resize(features, [POOLED_SIZE] * self.ndim).flatten(1)
        change = self.head(cells).float().view(-1, self.ndim, self.ndim + 1)
        a, t = change[..., :-1], change[..., -1:]
        shape = a.new_tensor(fixed.shape[2:])
        offset = t * shape.max() / 2 - a @ ((shape - 1) / 2)[:, None]
        last = a.new_zeros(len(a), 1, self.ndim + 1)
        return torch.cat([torch.cat([a, offset], 2), last], 1) + torch.eye(self.ndim + 1).to(a)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return [ops.affine_field(self.predict_matrix(fixed, moving), fixed.shape[2:])]
