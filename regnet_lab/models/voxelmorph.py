"""VoxelMorph: a U-Net that predicts a displacement field.

Balakrishnan, Zhao, Sabuncu, Guttag, Dalca: VoxelMorph: a learning framework for deformable
medical image registration, IEEE TMI 2019 (arXiv 1809.05231).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import init_flow_layer, make_conv_block, make_convolution


class VoxelMorph(nn.Module):
    """U-Net for images of any size that returns one field on the fixed grid.

    Args:
        ndim: 2 or 3.
        stem: Channels of the convolutions at full resolution before the first stride.
        down: Channels of the strided convolutions, each halving the grid.
        up: Channels of the convolutions of each decoder stage.  After each stage the features are
            upsampled by two (nearest) and concatenated with the encoder's features of that grid.
        out: Channels of the convolutions at full resolution.
        flow_init_std: Standard deviation of the flow layer's initial weights.  The published 1e-5
            spends the first hundreds of steps near zero.
        encoder_norm: Apply instance normalisation, without parameters, before each activation of
            the encoder; the published network has none.  In the decoder it would remove the mean
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
        flow_init_std: float = 1e-3,
        encoder_norm: bool = True,
    ) -> None:
        super().__init__()

        def make_chain(
            width: int, widths: Sequence[int], normalised: bool = False
        ) -> tuple[nn.Sequential, int]:
            channels = [width, *widths]
            layers = [make_conv_block(ndim, a, b, 1, normalised) for a, b in pairwise(channels)]
            return nn.Sequential(*layers), channels[-1]

        self.stem, width = make_chain(2, stem, encoder_norm)
        widths = [width]
        self.down = nn.ModuleList()
        for channels in down:
            self.down.append(make_conv_block(ndim, widths[-1], channels, 2, encoder_norm))
            widths.append(channels)
        width = widths.pop()
        self.up = nn.ModuleList()
        for stage, skip in zip(up, reversed(widths), strict=True):
            block, width = make_chain(width, stage)
            self.up.append(block)
            width += skip
        self.out, width = make_chain(width, out)
        self.flow = init_flow_layer(make_convolution(ndim, width, ndim), flow_init_std)

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
