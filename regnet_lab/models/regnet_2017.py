"""RegNet (2017): learns displacements from artificial deformations by multi-scale patches.

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
from regnet_lab.models.layers import CONVOLUTIONS, predict_displacement

BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOLS = {2: F.max_pool2d, 3: F.max_pool3d}


def make_unit(
    ndim: int,
    inputs: int,
    outputs: int,
    size: int = 3,
    dilation: int = 1,
    padding: int = 0,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Create a convolution, batch normalisation and activation; unpadded, the grid shrinks."""
    return nn.Sequential(
        CONVOLUTIONS[ndim](inputs, outputs, size, dilation=dilation, padding=padding),
        BATCH_NORMS[ndim](outputs, eps=1e-3),  # as published
        activation(),
    )


def make_units(ndim: int, widths: Sequence[int], dilation: int = 1) -> nn.Sequential:
    """Create units from each width to the next."""
    return nn.Sequential(*(make_unit(ndim, a, b, dilation=dilation) for a, b in pairwise(widths)))


def pad_replicate(x: Tensor, before: int, after: Sequence[int] | int) -> Tensor:
    """Replicate the outermost voxels of (B, C, *spatial) by ``before`` and ``after`` voxels."""
    ends = [after] * (x.ndim - 2) if isinstance(after, int) else list(after)
    return F.pad(x, [k for end in reversed(ends) for k in (before, end)], mode="replicate")


def crop_border(x: Tensor, cut: int) -> Tensor:
    """Remove ``cut`` voxels at each face of (B, C, *spatial)."""
    return ops.crop(x, [slice(cut, n - cut) for n in x.shape[2:]])


class PatchNetwork(nn.Module):
    """Base class of networks with a bounded receptive field, trained on patches or whole images.

    ``predict_field`` maps images (B, 2, *n), the moving one first, to a displacement
    (B, D, *n - 2 margin), for n - 2 margin = remainder modulo ``stride``.  Whole images are
    padded by the margin, and so get a field on their own grid.

    Args:
        patch_margin: Margin of the training patches; null: whole images.  Patches are not padded in
            training: as published, no prediction is learned from invented surroundings.  The field
            of a patch is valid ``margin`` voxels inside its faces and is extended from there; the
            loss must ignore the margin (:class:`regnet_lab.losses.CroppedLoss`).
        freeze_batch_norm: Normalise by the running statistics in training, too, without updating
            them.  For the later part of a training on few large images, whose statistics differ so
            much from the running ones that evaluation is off by millimetres.
    """

    margin: int  # voxels by which whole images are padded
    influence_radius: int  # voxels beyond which nothing has influence
    stride: int = 1  # shifts by multiples of it commute with the network
    remainder: int = 0
    min_field_size: int = 1  # shortest side of a field

    def __init__(self, patch_margin: int | None, freeze_batch_norm: bool) -> None:
        super().__init__()
        if patch_margin not in (None, self.margin):
            raise UserError(
                f"{type(self).__name__}: patch_margin={patch_margin}, but the network has a "
                f"margin of {self.margin} voxels; set the margin of the patches to it."
            )
        self.on_patches, self.freeze_batch_norm = patch_margin is not None, freeze_batch_norm

    def train(self, mode: bool = True) -> "PatchNetwork":
        super().train(mode)
        for module in self.modules():
            if self.freeze_batch_norm and isinstance(module, tuple(BATCH_NORMS.values())):
                module.eval()
        return self

    def predict_field(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        x = torch.cat([moving, fixed], 1)
        if self.on_patches and self.training:
            return [self.predict_patch_field(x)]
        shape = fixed.shape[2:]
        extra = [(self.remainder - n) % self.stride for n in shape]
        extra = [max(e, self.min_field_size - n) for e, n in zip(extra, shape, strict=True)]
        u = self.predict_field(pad_replicate(x, self.margin, [self.margin + e for e in extra]))
        return [ops.crop(u, [slice(n) for n in shape]).float()]

    def predict_patch_field(self, x: Tensor) -> Tensor:
        """Predict the field of a patch, extended over its margin."""
        for n in x.shape[2:]:
            inner = n - 2 * self.margin
            if inner < self.min_field_size or inner % self.stride != self.remainder:
                raise UserError(
                    f"A patch of {n} voxels does not suit {type(self).__name__}: give a margin of "
                    f"{self.margin} and an output of {self.min_field_size} + a multiple of "
                    f"{self.stride}."
                )
        return pad_replicate(self.predict_field(x).float(), self.margin, self.margin)


class RegNet(PatchNetwork):
    """Four streams, each image at full and at half resolution, merged on half the grid.

    The field is upsampled linearly.  904,878 parameters in 3D, 318,611 in 2D, without the running
    statistics of batch normalisation (1,834 values).

    Deviations from the paper: half resolution is the mean of 2^D voxels, not every second voxel,
    which lies half a voxel beside the pooled cells of the other streams; running statistics have
    momentum 0.1, as the published 0.01 needs hundreds of steps until evaluation benefits.
    """

    margin, influence_radius, stride, min_field_size = 26, 28, 2, 2

    def __init__(
        self, ndim: int, patch_margin: int | None = None, freeze_batch_norm: bool = False
    ) -> None:
        super().__init__(patch_margin, freeze_batch_norm)
        self.fine = nn.ModuleList(make_units(ndim, [1, 16, 16, 16]) for _ in range(2))
        self.coarse = nn.ModuleList(make_units(ndim, [1, 16, 16, 16]) for _ in range(2))
        self.fine_joined = make_units(ndim, [32, 25, 30])
        self.coarse_joined = make_units(ndim, [32, 25, 25, 25, 30, 30, 30])
        self.joined = nn.Sequential(
            make_units(ndim, [60, 60, 70, 75, 150]),
            make_unit(ndim, 150, 150, size=1),
            CONVOLUTIONS[ndim](150, ndim, 1),
        )

    def predict_field(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        half = ops.resize(x, [n // 2 for n in shape])
        near = crop_border(x, self.margin // 2)
        fine, coarse = (
            [stream(image) for stream, image in zip(streams, images.split(1, 1), strict=True)]
            for streams, images in ((self.fine, near), (self.coarse, half))
        )
        pooled = MAX_POOLS[len(shape)](self.fine_joined(torch.cat(fine, 1)), 2)
        x = torch.cat([pooled, self.coarse_joined(torch.cat(coarse, 1))], 1)
        u = predict_displacement(self.joined, x)  # half the grid, displacement in full voxels
        return ops.resize(u, [n - 2 * self.margin for n in shape])
