"""FAIM: a small network with an inception block at full resolution and additive skips.

Kuang, Schmah: FAIM, a ConvNet method for unsupervised 3D medical image registration, MLMI 2019
(arXiv 1811.09243).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import CONVOLUTIONS, init_flow_layer, make_convolution, zero_bias

TRANSPOSED_CONVOLUTIONS = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
ZERO_PADS = {2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
MIN_SIZE = 7  # voxels along an axis that leave one voxel after two unpadded strides


def make_same_convolution(ndim: int, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Create a kernel^D convolution that keeps the grid; even kernels reach one voxel ahead."""
    pad = ZERO_PADS[ndim](((kernel - 1) // 2, kernel // 2) * ndim)  # type: ignore[arg-type]
    return nn.Sequential(pad, CONVOLUTIONS[ndim](inputs, outputs, kernel))


def pad_to_shape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Append zeros at the end of every axis up to ``shape``."""
    missing = [target - n for target, n in zip(shape, x.shape[2:], strict=True)]
    return F.pad(x, [side for m in reversed(missing) for side in (0, m)])


class Inception(nn.Module):
    """Parallel linear convolutions of several kernel sizes, concatenated, then PReLU."""

    def __init__(self, ndim: int, inputs: int, kernels: Sequence[int], depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            make_same_convolution(ndim, inputs, depth, k) for k in kernels
        )
        self.rectifier = nn.PReLU(depth * len(kernels), init=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rectifier(torch.cat([branch(x) for branch in self.branches], 1))


class FAIM(nn.Module):
    """FAIM's network for images of any size; returns one field on the fixed grid.

    Unpadded strides map n voxels to floor((n - 1) / 2), unpadded transposed convolutions back to
    2 n + 1; if that is one short of the skip connection, a zero is appended, as in the original
    code.
    Activations are PReLUs with one slope a channel, initially 0.

    Args:
        ndim: 2 or 3.
        kernel_sizes: Kernel sizes of the inception block.
        branch_channels: Channels of each of its branches.
        channels: Channels of all other layers.
        flow_init_std: Standard deviation of the flow layer's initial weights.

    The defaults are the published code (233,683 parameters in 3D, 72,818 in 2D); kernels
    (7, 5, 3, 2) of depth 4 give the network of the paper's figure (179,787 and 60,762).
    """

    def __init__(
        self,
        ndim: int,
        kernel_sizes: Sequence[int] = (11, 7, 5, 2),
        branch_channels: int = 8,
        channels: int = 32,
        flow_init_std: float = 1e-2,
    ) -> None:
        super().__init__()

        def make_down(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                CONVOLUTIONS[ndim](inputs, channels, 3, 2), nn.PReLU(channels, init=0.0)
            )

        def make_up(outputs: int) -> nn.Sequential:
            wider = TRANSPOSED_CONVOLUTIONS[ndim](channels, channels, 3, 2)
            rectifier = nn.PReLU(outputs, init=0.0)
            return nn.Sequential(wider, make_convolution(ndim, channels, outputs), rectifier)

        full = branch_channels * len(kernel_sizes)
        self.inception = Inception(ndim, 2, kernel_sizes, branch_channels)
        self.to_half = make_down(full)
        self.to_quarter = nn.Sequential(
            make_convolution(ndim, channels, channels), make_down(channels)
        )
        self.bottom = make_same_convolution(ndim, channels, channels, 2)
        self.from_quarter, self.from_half = make_up(channels), make_up(full)
        self.flow = make_convolution(ndim, full, ndim)
        for layer in self.modules():  # Keras' initialisation
            if isinstance(layer, CONVOLUTIONS[ndim] | TRANSPOSED_CONVOLUTIONS[ndim]):
                nn.init.xavier_uniform_(layer.weight)
                zero_bias(layer)
        init_flow_layer(self.flow, flow_init_std)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        shape = fixed.shape[2:]
        images = pad_to_shape(torch.cat([fixed, moving], 1), [max(n, MIN_SIZE) for n in shape])
        full = self.inception(images)
        half = self.to_half(full)
        quarter = self.to_quarter(half)
        quarter = quarter + self.bottom(quarter)
        half = half + pad_to_shape(self.from_quarter(quarter), half.shape[2:])
        full = full + pad_to_shape(self.from_half(half), full.shape[2:])
        u = ops.full_precision(self.flow)(full)
        return [ops.crop(u, [slice(n) for n in shape])]
