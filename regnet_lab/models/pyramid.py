"""The Pyramid CNN: an affine map, a cost volume and a dense network per level, coarse to fine.

The authors' entry to Learn2Reg 2020 (learn2reg.grand-challenge.org), after PWC-Net (Sun et al.,
CVPR 2018).  Parameters select the published network or our corrected version.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regnet_lab import ops
from regnet_lab.models.layers import (
    Convolution,
    InstanceNorm,
    init_flow_layer,
    make_convolution,
    predict_displacement,
    zero_bias,
)
from regnet_lab.ops.cost_volume import cost_volume


class BatchNorm(_BatchNorm):
    """Batch normalisation with Keras's constants, for any number of dimensions.

    Uses the running statistics if a channel has only one value.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x[:, 0].numel() > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _check_input_dim(self, _: Tensor) -> None:
        """Accept any number of dimensions."""


def init_he_normal(layer: Convolution) -> Convolution:
    """Initialise a layer with weights N(0, 2 / inputs) and zero bias."""
    nn.init.kaiming_normal_(layer.weight)
    zero_bias(layer)
    return layer


def make_block(
    ndim: int, inputs: int, outputs: int, norm: str, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Create a convolution and a leaky ReLU of slope 0.2 with a normalisation.

    ``instance`` normalisation lies between them, ``batch`` normalisation after them; or ``none``.
    """
    layer = init_he_normal(make_convolution(ndim, inputs, outputs, stride, dilation))
    act = nn.LeakyReLU(0.2)
    orders: dict[str, list[nn.Module]] = {
        "instance": [layer, InstanceNorm(), act],
        "batch": [layer, act, BatchNorm(outputs)],
        "none": [layer, act],
    }
    return nn.Sequential(*orders[norm])


class FeaturePyramid(nn.ModuleList):
    """Feature maps of an image, fine to coarse: the image itself, then one of each width.

    Each halves the grid (rounding up) by a strided block, followed by two more blocks.
    """

    def __init__(self, ndim: int, widths: Sequence[int], norm: str) -> None:
        super().__init__(
            nn.Sequential(
                make_block(ndim, a, b, norm, stride=2),
                make_block(ndim, b, b, norm),
                make_block(ndim, b, b, norm),
            )
            for a, b in pairwise([1, *widths])
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for level in self:
            maps.append(level(maps[-1]))
        return maps


class DisplacementAffine(nn.Module):
    """The published affine map: u <- (I + A) u + t, a homogeneous matrix acting on u.

    (A | t) is a linear function of the global means of both feature maps, initially zero.  Where u
    is zero only t has an effect: this cannot produce scaling or rotation.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.linear = _make_affine_layer(2 * features, ndim)

    def forward(self, fixed: Tensor, warped: Tensor, u: Tensor) -> Tensor:
        pooled = torch.cat([fixed, warped], 1).flatten(2).mean(2)
        return u + _apply_affine(self.linear(pooled), u)


class CoordinateAffine(nn.Module):
    """Our correction: an affine map of the coordinates, id + u <- (id + u) o (x + A x' + t).

    x' runs from -1 to 1 over the level's grid, so that a coefficient is the displacement, in
    voxels, it causes at the border.  (A | t) is a linear function of the means of both
    feature maps and of their products with x', which carry the position.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.linear = _make_affine_layer(2 * features * (ndim + 1), ndim)

    def forward(self, fixed: Tensor, warped: Tensor, u: Tensor) -> Tensor:
        half = u.new_tensor(u.shape[2:]).view(1, -1, *[1] * (u.ndim - 2)) / 2
        x = (ops.identity_grid(u.shape[2:], u) + 0.5) / half - 1
        weights = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)  # (1, D + 1, N)
        maps = torch.cat([fixed, warped], 1).float().flatten(2)
        moments = maps @ weights.mT / maps.shape[2]  # (B, C, D + 1)
        return ops.compose(_apply_affine(self.linear(moments.flatten(1)), x), u)


def _make_affine_layer(inputs: int, ndim: int) -> nn.Linear:
    """Create a linear layer for D (D + 1) affine coefficients, initially zero."""
    layer = nn.Linear(inputs, ndim * (ndim + 1))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _apply_affine(coefficients: Tensor, x: Tensor) -> Tensor:
    """Compute A x + t for every vector of a field (B, D, *spatial) from (A | t), (B, D (D + 1))."""
    matrix = coefficients.float().unflatten(1, (x.shape[1], -1))  # (B, D, D + 1)
    moved = matrix[:, :, :-1] @ x.flatten(2) + matrix[:, :, -1:]
    return moved.view(len(matrix), *x.shape[1:])


AFFINE_MAPS = {"displacement": DisplacementAffine, "coordinates": CoordinateAffine}
NORMS = {"batch": ("batch", "batch"), "encoder_instance": ("instance", "none")}


class LevelEstimator(nn.Module):
    """The estimator of a level: improves the displacement from the coarser level.

    Affine map, warp of the moving features, cost volume, then dense blocks, each concatenating its
    output to its input.  A last layer, plus a context network of dilated blocks where wanted,
    predicts the displacement, or with ``residual`` a displacement composed with the affine map's.
    """

    def __init__(
        self,
        ndim: int,
        features: int,
        carried: int,
        affine: Callable[[int, int], nn.Module],
        radius: int,
        dense: Sequence[int],
        context: Sequence[int],
        dilations: Sequence[int],
        residual: bool,
        norm: str,
        flow_deviation: float | None,
    ) -> None:
        super().__init__()

        def make_flow_layer(inputs: int) -> nn.Module:
            layer = make_convolution(ndim, inputs, ndim)
            if flow_deviation is None:
                return init_he_normal(layer)
            return init_flow_layer(layer, flow_deviation)

        self.radius, self.residual = radius, residual
        self.affine = affine(ndim, features)
        width = (2 * radius + 1) ** ndim + features + ndim + carried
        self.dense = nn.ModuleList()
        for outputs in dense:
            self.dense.append(make_block(ndim, width, outputs, norm))
            width += outputs
        self.width = width
        self.flow = make_flow_layer(width)
        widths = zip(pairwise([width, *context]), dilations, strict=True)
        layers = [make_block(ndim, a, b, norm, dilation=d) for (a, b), d in widths]
        last = [make_flow_layer(context[-1])] if context else []
        self.context = nn.Sequential(*layers, *last)

    def forward(
        self, fixed: Tensor, moving: Tensor, u: Tensor, carried: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        u = self.affine(fixed, ops.warp(moving, u), u)
        cost = F.leaky_relu(cost_volume(fixed, ops.warp(moving, u), self.radius), 0.1)
        x = torch.cat([cost, fixed, u, *carried], 1)
        for layer in self.dense:
            x = torch.cat([layer(x), x], 1)
        change = ops.full_precision(self.flow)(x)
        if self.context:
            change = change + predict_displacement(self.context, x)
        return ops.compose(change, u) if self.residual else change, x


class Upsampling(nn.Module):
    """Convolution of displacement and dense features after upsampling to the next finer grid.

    The displacement is scaled to the new grid's voxels.  ``smooth``: linear upsampling, and the
    displacement's convolution starts as the identity; otherwise, as published, nearest neighbour
    and random weights.
    """

    def __init__(self, ndim: int, features: int, carried: int, smooth: bool) -> None:
        super().__init__()
        self.flow = init_he_normal(make_convolution(ndim, ndim, ndim))
        self.features = init_he_normal(make_convolution(ndim, features, carried))
        self.upsample = ops.resize if smooth else ops.resize_nearest
        if smooth:
            nn.init.dirac_(self.flow.weight)

    def forward(self, u: Tensor, x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        ratio = u.new_tensor([to / n for to, n in zip(shape, u.shape[2:], strict=True)])
        up = ops.full_precision(self.flow)(self.upsample(u, shape))
        up = up * ratio.view(1, -1, *[1] * (u.ndim - 2))
        return up, self.features(ops.resize_nearest(x, shape))


class Pyramid(nn.Module):
    """Pyramid CNN; returns one field for every level, the last on the fixed grid.

    Args:
        ndim: 2 or 3.
        encoder_channels: Channels of the feature pyramid of both images, fine to coarse.
        cost_volume_radius: Radius of the cost volumes, in voxels of each level.
        dense_channels: Channels of the dense blocks of an estimator.
        upsampled_channels: Channels of dense features passed to the next finer level.
        finest_level: Finest level with an estimator, 0 being the fixed grid; fields of finer levels
            are interpolated.  Level 0 takes nearly all of the time.
        context_channels: Channels of the dilated blocks; empty: no context network.
        context_dilations: Dilations of the context blocks.
        context_level: Level with the context network: ``finest`` or, as published, ``coarsest``.
        affine_acts_on: What the affine map of each level acts on: ``coordinates`` or, as published,
            ``displacement``.
        residual: Compose each estimate with the displacement from the coarser level; as published,
            an estimator predicts the total displacement.
        norm: ``encoder_instance``: instance normalisation in the feature pyramid only; ``batch``:
            batch normalisation everywhere.
        flow_init_std: Standard deviation of the initial weights of flow layers, with smooth
            upsampling of the displacement; null: as published, He normal.

    The defaults give the published network of 8,568,791 parameters.
    """

    def __init__(
        self,
        ndim: int,
        encoder_channels: Sequence[int] = (16, 32, 32, 32),
        cost_volume_radius: int = 2,
        dense_channels: Sequence[int] = (64, 64, 32, 16, 8),
        upsampled_channels: int = 32,
        finest_level: int = 0,
        context_channels: Sequence[int] = (64, 64, 64, 32, 16, 8),
        context_dilations: Sequence[int] = (1, 2, 4, 8, 16, 1),
        context_level: str = "coarsest",
        affine_acts_on: str = "displacement",
        residual: bool = False,
        norm: str = "batch",
        flow_init_std: float | None = None,
    ) -> None:
        super().__init__()
        encoder_norm, estimator_norm = NORMS[norm]
        self.features = FeaturePyramid(ndim, encoder_channels, encoder_norm)
        self.encode_jointly = encoder_norm != "batch"
        channels = [1, *encoder_channels][finest_level:][::-1]  # of the estimators, coarse to fine
        context_index = {"coarsest": 0, "finest": len(channels) - 1}[context_level]
        estimators = [
            LevelEstimator(
                ndim,
                features,
                upsampled_channels if i else 0,
                AFFINE_MAPS[affine_acts_on],
                cost_volume_radius,
                dense_channels,
                context_channels if i == context_index else (),
                context_dilations if i == context_index else (),
                residual,
                estimator_norm,
                flow_init_std,
            )
            for i, features in enumerate(channels)
        ]
        self.estimators = nn.ModuleList(estimators)
        smooth = flow_init_std is not None
        self.rises = nn.ModuleList(
            Upsampling(ndim, e.width, upsampled_channels, smooth) for e in estimators[:-1]
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        levels = self.encode(fixed, moving)[::-1]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *levels[0][0].shape[2:])
        carried: list[Tensor] = []
        fields = []
        for i, estimator in enumerate(self.estimators):
            u, x = estimator(*levels[i], u, carried)
            fields.append(u)
            if i < len(self.rises):
                u, *carried = self.rises[i](u, x, levels[i + 1][0].shape[2:])
        return fields + [ops.resize_field(u, f.shape[2:]) for f, _ in levels[len(fields) :]]

    def encode(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the feature maps of both images, fine to coarse.

        One batch for both is several times as fast on a CPU; batch normalisation forbids it.
        """
        if not self.encode_jointly:
            return list(zip(self.features(fixed), self.features(moving), strict=True))
        maps = self.features(torch.cat([fixed, moving]))
        return [(m[: len(fixed)], m[len(fixed) :]) for m in maps]
