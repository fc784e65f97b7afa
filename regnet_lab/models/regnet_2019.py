"""RegNet (2019): three networks that predict on the full grid.

Sokooti, de Vos, Berendsen, Ghafoorian, Yousefi, Lelieveldt, Isgum, Staring: 3D convolutional neural
networks image registration based on efficient supervised learning from artificial deformations,
2019 (arXiv 1908.10235).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import CONVOLUTIONS, predict_displacement
from regnet_lab.models.regnet_2017 import (
    MAX_POOLS,
    PatchNetwork,
    crop_border,
    make_unit,
    make_units,
    pad_replicate,
)
from regnet_lab.ops.bspline import cubic_bspline

INTERPOLATION_MODES = {2: "bilinear", 3: "trilinear"}


def upsample_linear(x: Tensor) -> Tensor:
    """Interpolate linearly from n to 2 n + 1 voxels along each axis.

    Voxel k goes to 2 k + 1; a voxel between two neighbours is their mean, with replicated borders.
    """
    shape, mode = [2 * n + 3 for n in x.shape[2:]], INTERPOLATION_MODES[x.ndim - 2]
    up = F.interpolate(pad_replicate(x, 1, 1), shape, mode=mode, align_corners=True)
    return crop_border(up, 1)


def make_spline_kernel(ndim: int, factor: int) -> Tensor:
    """Return the cubic B-spline of (|x| + |y| + ...) / factor, (1, 1, *4 factor - 1), sum 1."""
    axis = torch.arange(1 - 2 * factor, 2 * factor).abs() / factor
    distance = torch.zeros(())
    for k in range(ndim):
        distance = distance + axis.view(-1, *[1] * k)
    kernel = cubic_bspline(distance)
    return (kernel / kernel.sum())[None, None]


class ThreeResolutions(PatchNetwork):
    """Base class of networks that merge features of full, half and quarter resolution."""

    influence_radius, stride, remainder = 48, 4, 1

    def add_merging_layers(self, ndim: int, quarter_widths: list[int]) -> None:
        """Add the layers of quarter resolution and those that merge all resolutions."""
        self.half_last = make_unit(ndim, 36, 38, dilation=2)
        self.half_up = make_unit(ndim, 38 + 16, 40)
        self.at_quarter = nn.Sequential(
            make_units(ndim, quarter_widths), make_units(ndim, [40, 42, 44, 46], 2)
        )
        rises = make_unit(ndim, 46 + 36, 46), make_unit(ndim, 46 + 16, 40)
        self.quarter_up = nn.ModuleList(rises)
        self.head = nn.Sequential(
            make_unit(ndim, 112, 120, activation=nn.ELU),
            make_unit(ndim, 120, 50, activation=nn.ELU),
            CONVOLUTIONS[ndim](50, ndim, 1),
        )

    def merge(self, shallow: Tensor, full: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """Return the displacement on 21 voxels from features on 27, 25, 17 and 23."""
        half_up = self.half_up(torch.cat([upsample_linear(self.half_last(half)), shallow], 1))  # 25
        quarter = upsample_linear(self.at_quarter(quarter))  # 15
        quarter = self.quarter_up[0](torch.cat([quarter, crop_border(half, 1)], 1))  # 13
        quarter = self.quarter_up[1](torch.cat([upsample_linear(quarter), shallow], 1))  # 25
        return predict_displacement(self.head, torch.cat([full, half_up, quarter], 1))  # 21


class RegNetCrop4(ThreeResolutions):
    """Full, half and quarter resolution by pooling, each cropped to the region it needs.

    1,262,973 parameters in 3D, without the running statistics of batch normalisation.  Published
    patch_margin: 101 voxels for an output of 21.
    """

    margin = 40

    def __init__(
        self, ndim: int, patch_margin: int | None = None, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(patch_margin, freeze_batch_norm)
        self.pool = MAX_POOLS[ndim]
        self.first = make_unit(ndim, 2, 16)
        self.at_full = make_units(ndim, [16, 20, 24, 28, 32, 32, 32])
        self.half_first = make_unit(ndim, 16, 30)
        self.at_half = nn.Sequential(make_unit(ndim, 30, 30), make_units(ndim, [30, 32, 34, 36], 2))
        self.add_merging_layers(ndim, [30, 40, 40])

    def predict_field(self, x: Tensor) -> Tensor:
        first = self.first(x)  # 99, of 101
        shallow = crop_border(first, 36)  # 27
        full = self.at_full(crop_border(first, 31))  # 25
        pooled = self.half_first(self.pool(first, 2))  # 47
        half = self.at_half(crop_border(pooled, 8))  # 17
        return self.merge(shallow, full, half, self.pool(pooled, 2))


class RegNetDecimation4(ThreeResolutions):
    """Full, half and quarter resolution by smoothing the images, each with its own weights.

    1,201,353 parameters in 3D, counted as in :class:`RegNetCrop4`.  Published patches: 105 voxels
    for an output of 21.  The quarter resolution is centred on the patch; published, it is one voxel
    off.
    """

    margin = 42
    kernel2: Tensor
    kernel4: Tensor

    def __init__(
        self, ndim: int, patch_margin: int | None = None, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(patch_margin, freeze_batch_norm)
        for factor, name in ((2, "kernel2"), (4, "kernel4")):
            self.register_buffer(name, make_spline_kernel(ndim, factor), persistent=False)
        self.first = make_unit(ndim, 2, 16, padding=1)
        self.at_full = make_units(ndim, [16, 20, 24, 28, 32, 32, 32])
        self.at_half = nn.Sequential(
            make_unit(ndim, 2, 20, padding=1),
            make_unit(ndim, 20, 30),
            make_units(ndim, [30, 32, 34, 36], 2),
        )
        self.add_merging_layers(ndim, [2, 30, 40])

    def decimate(self, x: Tensor, kernel: Tensor, factor: int) -> Tensor:
        """Smooth both images and take every ``factor``-th voxel."""
        convolve = {2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
        return torch.cat([convolve(image, kernel, stride=factor) for image in x.split(1, 1)], 1)

    def predict_field(self, x: Tensor) -> Tensor:
        first = self.first(crop_border(x, 34))  # 37, of 105
        shallow = crop_border(first, 5)  # 27
        half = self.at_half(self.decimate(crop_border(x, 19), self.kernel2, 2))  # 17, of 31
        quarter = self.decimate(crop_border(x, 1), self.kernel4, 4)  # 23
        return self.merge(shallow, self.at_full(first), half, quarter)


class RegNetUNet(PatchNetwork):
    """A U-Net with three pooling layers whose output has the size of its input.

    232,749 parameters in 3D, counted as in :class:`RegNetCrop4`.  Images are padded at the far ends
    to 8 k + 5 voxels, at least 29, which leaves 2^D voxels for batch normalisation at the bottom.
    Published: 125.
    """

    margin, influence_radius, stride, remainder, min_field_size = 0, 56, 8, 5, 29

    def __init__(
        self, ndim: int, patch_margin: int | None = None, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(patch_margin, freeze_batch_norm)
        self.pool = MAX_POOLS[ndim]
        self.at_full = make_unit(ndim, 2, 12, padding=1)
        self.at_half = make_unit(ndim, 12, 24)
        self.at_quarter = make_unit(ndim, 24, 28)
        self.at_eighth = nn.Sequential(
            *(make_unit(ndim, a, b, padding=1) for a, b in ((28, 32), (32, 40), (40, 44)))
        )
        self.quarter_up = make_unit(ndim, 44 + 28, 32, padding=1)
        self.half_up = make_unit(ndim, 32 + 24, 18, padding=1)
        self.full_up = make_unit(ndim, 18 + 12, 12, padding=1, activation=nn.ELU)
        self.flow = CONVOLUTIONS[ndim](12, ndim, 1)

    def predict_field(self, x: Tensor) -> Tensor:
        full = self.at_full(x)  # 125
        half = self.at_half(self.pool(full, 2, ceil_mode=True))  # 61
        quarter = self.at_quarter(self.pool(half, 2, ceil_mode=True))  # 29
        x = self.at_eighth(self.pool(quarter, 2))  # 14
        x = self.quarter_up(torch.cat([upsample_linear(x), quarter], 1))
        x = self.half_up(torch.cat([pad_replicate(upsample_linear(x), 1, 1), half], 1))
        x = self.full_up(torch.cat([pad_replicate(upsample_linear(x), 1, 1), full], 1))
        return ops.full_precision(self.flow)(x)
