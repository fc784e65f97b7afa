"""The VoxelMorph U-Net, every paper's baseline.

Balakrishnan, Zhao, Sabuncu, Guttag, Dalca: VoxelMorph: a learning framework for deformable
medical image registration, IEEE TMI 2019 (arXiv 1809.05231).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import activated, convolution, initialise_flow


class VoxelMorph(nn.Module):
    """One field on the fixed grid, from a U-Net that takes images of any size.

    Args:
        ndim: 2 or 3.
        stem: Widths of the convolutions at full resolution before the first stride.
        down: Widths of the strided convolutions, each halving the grid.
        up: Widths of the convolutions of each decoder stage; after each stage the features go up
            by two (nearest) and the encoder's features of that grid are appended.
        out: Widths of the convolutions at full resolution.
        flow_deviation: Standard deviation of the flow layer's first weights; the published 1e-5
            spends the first hundreds of steps near zero.
        normalised: Put instance normalisation, without parameters, before each rectifier of the
            encoder; the published network has none.  In the decoder it would take away the mean
            over the image, and with it translations.

    The defaults are the network GraDIRN is compared with; stem (), down (16, 32, 32, 32),
    up ((32,), (32,), (32,), (32, 8)) and out (8,) give VoxelMorph-1.
    """

    def __init__(
        self,
        ndim: int,
        stem: Sequence[int] = (16,),
        down: Sequence[int] = (32, 32, 32, 32),
        up: Sequence[Sequence[int]] = ((32,), (32,), (32,), (32,)),
        out: Sequence[int] = (16, 16),
        flow_deviation: float = 1e-3,
        normalised: bool = True,
    ) -> None:
        super().__init__()

        def chain(
            width: int, widths: Sequence[int], normalised: bool = False
        ) -> tuple[nn.Sequential, int]:
            joints = [width, *widths]
            layers = [activated(ndim, a, b, 1, normalised) for a, b in pairwise(joints)]
            return nn.Sequential(*layers), joints[-1]

        self.stem, width = chain(2, stem, normalised)
        widths = [width]
        self.down = nn.ModuleList()
        for after in down:
            self.down.append(activated(ndim, widths[-1], after, 2, normalised))
            widths.append(after)
        width = widths.pop()
        self.up = nn.ModuleList()
        for stage, skip in zip(up, reversed(widths), strict=True):
            block, width = chain(width, stage)
            self.up.append(block)
            width += skip
        self.out, width = chain(width, out)
        self.flow = initialise_flow(convolution(ndim, width, ndim), flow_deviation)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        features = [self.stem(torch.cat([fixed, moving], 1))]
        for layer in self.down:
            features.append(layer(features[-1]))
        x = features.pop()
        for block in self.up:
            skip = features.pop()
            x = F.interpolate(block(x), skip.shape[2:], mode="nearest")
            x = torch.cat([x, skip], 1)
        return [ops.full_precision(self.flow)(self.out(x))]
