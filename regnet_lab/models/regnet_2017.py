"""RegNet: displacements learned from artificial deformations, first version.

Sokooti, de Vos, Berendsen, Lelieveldt, Isgum, Staring: Nonrigid image registration using
multi-scale 3D convolutional neural networks, MICCAI 2017.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.layers import CONV, displacement

NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: F.max_pool2d, 3: F.max_pool3d}
EPSILON = 1e-3  # of the published normalisation


def unit(
    ndim: int,
    inputs: int,
    outputs: int,
    size: int = 3,
    dilation: int = 1,
    padding: int = 0,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """A convolution, batch normalisation and a rectifier; without padding the grid shrinks."""
    return nn.Sequential(
        CONV[ndim](inputs, outputs, size, dilation=dilation, padding=padding),
        NORM[ndim](outputs, eps=EPSILON),
        activation(),
    )


def units(ndim: int, widths: Sequence[int], dilation: int = 1) -> nn.Sequential:
    """Units from each width to the next."""
    return nn.Sequential(*(unit(ndim, a, b, dilation=dilation) for a, b in pairwise(widths)))


def surrounded(x: Tensor, before: int, after: Sequence[int] | int) -> Tensor:
    """Continue the outermost voxels of (B, C, *spatial) by ``before`` and ``after`` voxels."""
    behind = [after] * (x.ndim - 2) if isinstance(after, int) else list(after)
    return F.pad(x, [k for a in reversed(behind) for k in (before, a)], mode="replicate")


def core(x: Tensor, cut: int) -> Tensor:
    """(B, C, *spatial) without ``cut`` voxels at each face."""
    return x[..., *[slice(cut, n - cut) for n in x.shape[2:]]]  # type: ignore[index]


class PatchNetwork(nn.Module):
    """A network of which each answer looks at a bounded part of the images.

    Its ``field`` makes of images (B, 2, *n), the moving one first, a displacement
    (B, D, *n - 2 margin), for n - 2 margin = remainder modulo ``stride``.  A whole image is
    continued by the margin, and so has a field on all of its own grid.

    Args:
        patches: Margin of the patches the network is trained on; null: whole images.  With patches,
            nothing is continued in training, so that as published no answer is learned from
            invented surroundings and no work is spent on them: the field of a patch is known
            ``margin`` voxels off its faces and continues from there, and a loss has to look at the
            middle alone (:class:`regnet_lab.losses.Cropped`).
        frozen: Normalise in training, too, by the running statistics, and leave them as they are:
            for the later part of a training by few large images, whose own statistics differ so
            much from the running ones that what was learned is off by millimetres in evaluation.

    Raises:
        UserError: The patches have another margin than the network.
    """

    margin: int  # by which a whole image is continued
    reach: int  # beyond which nothing has influence
    stride: int = 1  # shift after which a shifted image has the shifted field
    remainder: int = 0
    least: int = 1  # shortest side of a field

    def __init__(self, patches: int | None, frozen: bool) -> None:
        super().__init__()
        if patches not in (None, self.margin):
            raise UserError(
                f"{type(self).__name__}: patches={patches}, but an answer looks {self.margin} "
                "voxels around; set the margin of the patches to that."
            )
        self.on_patches, self.frozen = patches is not None, frozen

    def train(self, mode: bool = True) -> "PatchNetwork":
        super().train(mode)
        for module in self.modules():
            if self.frozen and isinstance(module, tuple(NORM.values())):
                module.eval()
        return self

    def field(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        x = torch.cat([moving, fixed], 1)
        if self.on_patches and self.training:
            return [self.patch(x)]
        shape = fixed.shape[2:]
        extra = [(self.remainder - n) % self.stride for n in shape]
        extra = [max(e, self.least - n) for e, n in zip(extra, shape, strict=True)]
        u = self.field(surrounded(x, self.margin, [self.margin + e for e in extra]))
        return [u[..., *[slice(n) for n in shape]].float()]  # type: ignore[index]

    def patch(self, x: Tensor) -> Tensor:
        """The field of a patch, continued over its margin.

        Raises:
            UserError: The patch has a side the network cannot take.
        """
        for n in x.shape[2:]:
            inner = n - 2 * self.margin
            if inner < self.least or inner % self.stride != self.remainder:
                raise UserError(
                    f"A patch of {n} voxels does not suit {type(self).__name__}: give a margin of "
                    f"{self.margin} and an output of {self.least} + a multiple of {self.stride}."
                )
        return surrounded(self.field(x).float(), self.margin, self.margin)


class RegNet(PatchNetwork):
    """Four streams, each image as it is and at half resolution, joined and answered on half the
    grid; the field comes up by linear interpolation.

    904,878 parameters in 3D, 318,611 in 2D, with the scales and offsets of batch normalisation
    and without its running means and variances (1,834 numbers more).

    The half resolution is the mean of 2^D voxels.  Published is every second voxel, which lies half
    a voxel beside the cells that pool the other streams.  Running statistics follow the batch by a
    tenth; the published hundredth needs hundreds of steps before evaluation shows what was learned.
    """

    margin, reach, stride, least = 26, 28, 2, 2

    def __init__(self, ndim: int, patches: int | None = None, frozen: bool = False) -> None:
        super().__init__(patches, frozen)
        self.fine = nn.ModuleList(units(ndim, [1, 16, 16, 16]) for _ in range(2))
        self.coarse = nn.ModuleList(units(ndim, [1, 16, 16, 16]) for _ in range(2))
        self.fine_joined = units(ndim, [32, 25, 30])
        self.coarse_joined = units(ndim, [32, 25, 25, 25, 30, 30, 30])
        self.joined = nn.Sequential(
            units(ndim, [60, 60, 70, 75, 150]),
            unit(ndim, 150, 150, size=1),
            CONV[ndim](150, ndim, 1),
        )

    def field(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        half = ops.resize(x, [n // 2 for n in shape])
        near = torch.split(core(x, self.margin // 2), 1, 1)
        fine = [stream(image) for stream, image in zip(self.fine, near, strict=True)]
        coarse = [
            stream(image) for stream, image in zip(self.coarse, half.split(1, 1), strict=True)
        ]
        pooled = POOL[len(shape)](self.fine_joined(torch.cat(fine, 1)), 2)
        x = torch.cat([pooled, self.coarse_joined(torch.cat(coarse, 1))], 1)
        u = displacement(self.joined, x)  # half the grid, displacement in full voxels
        return ops.resize(u, [n - 2 * self.margin for n in shape])
