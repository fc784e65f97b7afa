"""RegNet, second version: three networks that answer on the full grid.

Sokooti, de Vos, Berendsen, Ghafoorian, Yousefi, Lelieveldt, Isgum, Staring: 3D convolutional neural
networks image registration based on efficient supervised learning from artificial deformations,
2019 (arXiv 1908.10235).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import CONV, displacement
from regnet_lab.models.regnet_2017 import POOL, PatchNetwork, core, surrounded, unit, units

LINEAR = {2: "bilinear", 3: "trilinear"}


def doubled(x: Tensor) -> Tensor:
    """Linear interpolation from n to 2 n + 1 voxels an axis: voxel k goes to 2 k + 1, and half-way
    between neighbours, of which the outermost continue, lies their mean.
    """
    shape = [2 * n + 3 for n in x.shape[2:]]
    return core(
        F.interpolate(surrounded(x, 1, 1), shape, mode=LINEAR[x.ndim - 2], align_corners=True), 1
    )


def spline_kernel(ndim: int, factor: int) -> Tensor:
    """(1, 1, *4 factor - 1) cubic B-spline of (|x| + |y| + ...) / factor, with sum 1."""
    axis = torch.arange(1 - 2 * factor, 2 * factor).abs() / factor
    far = torch.zeros(())
    for k in range(ndim):
        far = far + axis.view(-1, *[1] * k)
    inner = 2 / 3 - far**2 + far**3 / 2
    outer = (2 - far).clamp(min=0) ** 3 / 6
    kernel = torch.where(far < 1, inner, outer)
    return (kernel / kernel.sum())[None, None]


def head(ndim: int) -> nn.Sequential:
    """From the features of three resolutions to the displacement; 4 voxels fewer an axis."""
    return nn.Sequential(
        unit(ndim, 112, 120, activation=nn.ELU),
        unit(ndim, 120, 50, activation=nn.ELU),
        CONV[ndim](50, ndim, 1),
    )


class RegNetCrop4(PatchNetwork):
    """Full, half and quarter resolution by pooling, of which each sees as far as it must.

    1,262,973 parameters in 3D, with the scales and offsets of batch normalisation and without its
    running means and variances.  Published patches: 101 voxels for an answer of 21.
    """

    margin, reach, stride, remainder = 40, 48, 4, 1

    def __init__(self, ndim: int, patches: int | None = None, frozen: bool = False) -> None:
        super().__init__(patches, frozen)
        self.pool = POOL[ndim]
        self.first = unit(ndim, 2, 16)
        self.at_full = units(ndim, [16, 20, 24, 28, 32, 32, 32])
        self.half_first = unit(ndim, 16, 30)
        self.at_half = nn.Sequential(unit(ndim, 30, 30), units(ndim, [30, 32, 34, 36], 2))
        self.half_last = unit(ndim, 36, 38, dilation=2)
        self.half_up = unit(ndim, 38 + 16, 40)
        self.at_quarter = nn.Sequential(units(ndim, [30, 40, 40]), units(ndim, [40, 42, 44, 46], 2))
        self.quarter_up = nn.ModuleList([unit(ndim, 46 + 36, 46), unit(ndim, 46 + 16, 40)])
        self.head = head(ndim)

    def field(self, x: Tensor) -> Tensor:
        first = self.first(x)  # 99, of 101
        shallow = core(first, 36)  # 27
        full = self.at_full(core(first, 31))  # 25
        pooled = self.half_first(self.pool(first, 2))  # 47
        half = self.at_half(core(pooled, 8))  # 17
        half_up = self.half_up(torch.cat([doubled(self.half_last(half)), shallow], 1))  # 25
        quarter = doubled(self.at_quarter(self.pool(pooled, 2)))  # 15
        quarter = self.quarter_up[0](torch.cat([quarter, core(half, 1)], 1))  # 13
        quarter = self.quarter_up[1](torch.cat([doubled(quarter), shallow], 1))  # 25
        return displacement(self.head, torch.cat([full, half_up, quarter], 1))  # 21


class RegNetDecimation4(PatchNetwork):
    """Full, half and quarter resolution by smoothing the images, each with weights of its own.

    1,201,353 parameters in 3D, counted as in :class:`RegNetCrop4`.  Published patches: 105 voxels
    for an answer of 21.  The quarter resolution is centred on the patch; published, it lay a voxel
    beside.
    """

    margin, reach, stride, remainder = 42, 48, 4, 1
    kernel2: Tensor
    kernel4: Tensor

    def __init__(self, ndim: int, patches: int | None = None, frozen: bool = False) -> None:
        super().__init__(patches, frozen)
        for factor, name in ((2, "kernel2"), (4, "kernel4")):
            self.register_buffer(name, spline_kernel(ndim, factor), persistent=False)
        self.first = unit(ndim, 2, 16, padding=1)
        self.at_full = units(ndim, [16, 20, 24, 28, 32, 32, 32])
        self.at_half = nn.Sequential(
            unit(ndim, 2, 20, padding=1), unit(ndim, 20, 30), units(ndim, [30, 32, 34, 36], 2)
        )
        self.half_last = unit(ndim, 36, 38, dilation=2)
        self.half_up = unit(ndim, 38 + 16, 40)
        self.at_quarter = nn.Sequential(units(ndim, [2, 30, 40]), units(ndim, [40, 42, 44, 46], 2))
        self.quarter_up = nn.ModuleList([unit(ndim, 46 + 36, 46), unit(ndim, 46 + 16, 40)])
        self.head = head(ndim)

    def decimated(self, x: Tensor, kernel: Tensor, factor: int) -> Tensor:
        """Both images smoothed and taken at every ``factor``-th voxel."""
        convolve = {2: F.conv2d, 3: F.conv3d}[x.ndim - 2]
        return torch.cat([convolve(image, kernel, stride=factor) for image in x.split(1, 1)], 1)

    def field(self, x: Tensor) -> Tensor:
        first = self.first(core(x, 34))  # 37, of 105
        shallow = core(first, 5)  # 27
        half = self.at_half(self.decimated(core(x, 19), self.kernel2, 2))  # 17, of 31
        half_up = self.half_up(torch.cat([doubled(self.half_last(half)), shallow], 1))  # 25
        quarter = doubled(self.at_quarter(self.decimated(core(x, 1), self.kernel4, 4)))  # 15, of 23
        quarter = self.quarter_up[0](torch.cat([quarter, core(half, 1)], 1))  # 13
        quarter = self.quarter_up[1](torch.cat([doubled(quarter), shallow], 1))  # 25
        return displacement(self.head, torch.cat([self.at_full(first), half_up, quarter], 1))  # 21


class RegNetUNet(PatchNetwork):
    """A U-Net over three poolings whose answer is as large as its images.

    232,749 parameters in 3D, counted as in :class:`RegNetCrop4`.  Images are continued at their
    far ends to 8 k + 5 voxels, 29 at least, which leave batch normalisation 2^D voxels at the
    bottom.  Published are 125.
    """

    margin, reach, stride, remainder, least = 0, 56, 8, 5, 29

    def __init__(self, ndim: int, patches: int | None = None, frozen: bool = False) -> None:
        super().__init__(patches, frozen)
        self.pool = POOL[ndim]
        self.at_full = unit(ndim, 2, 12, padding=1)
        self.at_half = unit(ndim, 12, 24)
        self.at_quarter = unit(ndim, 24, 28)
        self.at_eighth = nn.Sequential(
            *(unit(ndim, a, b, padding=1) for a, b in ((28, 32), (32, 40), (40, 44)))
        )
        self.quarter_up = unit(ndim, 44 + 28, 32, padding=1)
        self.half_up = unit(ndim, 32 + 24, 18, padding=1)
        self.full_up = unit(ndim, 18 + 12, 12, padding=1, activation=nn.ELU)
        self.flow = CONV[ndim](12, ndim, 1)

    def field(self, x: Tensor) -> Tensor:
        full = self.at_full(x)  # 125
        half = self.at_half(self.pool(full, 2, ceil_mode=True))  # 61
        quarter = self.at_quarter(self.pool(half, 2, ceil_mode=True))  # 29
        x = self.at_eighth(self.pool(quarter, 2))  # 14
        x = self.quarter_up(torch.cat([doubled(x), quarter], 1))
        x = self.half_up(torch.cat([surrounded(doubled(x), 1, 1), half], 1))
        x = self.full_up(torch.cat([surrounded(doubled(x), 1, 1), full], 1))
        return ops.full_precision(self.flow)(x)
