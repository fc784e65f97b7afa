"""FAIM: a small network with an inception block at full resolution and additive skips.

Kuang, Schmah: FAIM, a ConvNet method for unsupervised 3D medical image registration, MLMI 2019
(arXiv 1811.09243).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import CONV, convolution, initialise_flow

TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
PAD = {2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
SMALLEST = 7  # voxels along an axis which two unpadded strides still leave one of


def same(ndim: int, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A kernel^D convolution on its own grid; an even kernel reaches one voxel further ahead."""
    pad = PAD[ndim](((kernel - 1) // 2, kernel // 2) * ndim)  # type: ignore[arg-type]
    return nn.Sequential(pad, CONV[ndim](inputs, outputs, kernel))


def grown(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros appended at the end of every axis up to ``shape``."""
    missing = [new - old for new, old in zip(shape, x.shape[2:], strict=True)]
    return F.pad(x, [side for m in reversed(missing) for side in (0, m)])


class Inception(nn.Module):
    """Parallel linear convolutions of several kernel sizes, concatenated, then rectified."""

    def __init__(self, ndim: int, inputs: int, kernels: Sequence[int], depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(same(ndim, inputs, depth, k) for k in kernels)
        self.rectifier = nn.PReLU(depth * len(kernels), init=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rectifier(torch.cat([branch(x) for branch in self.branches], 1))


class FAIM(nn.Module):
    """One field on the fixed grid, from images of any size.

    Unpadded strides take n voxels to floor((n - 1) / 2), unpadded transposed convolutions back to
    2 n + 1; where that is one short of the skip, a zero is appended, as the original does for its
    own sizes.  Rectifiers have one learned slope a channel, 0 at the start.

    Args:
        ndim: 2 or 3.
        kernels: Kernel sizes of the inception block.
        depth: Channels of each of its branches.
        width: Channels of all other layers.
        flow_deviation: Standard deviation of the flow layer's first weights.

    The defaults are the published code (233,683 parameters in 3D, 72,818 in 2D); kernels
    (7, 5, 3, 2) of depth 4 give the network of the paper's figure (179,787 and 60,762).
    """

    def __init__(
        self,
        ndim: int,
        kernels: Sequence[int] = (11, 7, 5, 2),
        depth: int = 8,
        width: int = 32,
        flow_deviation: float = 1e-2,
    ) -> None:
        super().__init__()

        def down(inputs: int) -> nn.Sequential:
            return nn.Sequential(CONV[ndim](inputs, width, 3, 2), nn.PReLU(width, init=0.0))

        def up(outputs: int) -> nn.Sequential:
            wider = TRANSPOSED[ndim](width, width, 3, 2)
            rectifier = nn.PReLU(outputs, init=0.0)
            return nn.Sequential(wider, convolution(ndim, width, outputs), rectifier)

        full = depth * len(kernels)
        self.inception = Inception(ndim, 2, kernels, depth)
        self.to_half = down(full)
        self.to_quarter = nn.Sequential(convolution(ndim, width, width), down(width))
        self.bottom = same(ndim, width, width, 2)
        self.from_quarter, self.from_half = up(width), up(full)
        self.flow = convolution(ndim, full, ndim)
        for layer in self.modules():
            if isinstance(layer, CONV[ndim] | TRANSPOSED[ndim]):  # Keras' initialisation
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        initialise_flow(self.flow, flow_deviation)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        shape = fixed.shape[2:]
        images = grown(torch.cat([fixed, moving], 1), [max(n, SMALLEST) for n in shape])
        full = self.inception(images)
        half = self.to_half(full)
        quarter = self.to_quarter(half)
        quarter = quarter + self.bottom(quarter)
        half = half + grown(self.from_quarter(quarter), half.shape[2:])
        full = full + grown(self.from_half(half), full.shape[2:])
        u = ops.full_precision(self.flow)(full)
        return [u[(..., *[slice(n) for n in shape])]]
