"""The Pyramid CNN: from coarse to fine, an affine map, a cost volume and a dense network per level.

The entry of its authors to Learn2Reg 2020 (learn2reg.grand-challenge.org), after PWC-Net (Sun et
al., CVPR 2018).  Two ways of being are kept apart by parameters: as published, and mended.
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
    convolution,
    displacement,
    initialise_flow,
)
from regnet_lab.ops.cost_volume import cost_volume


class BatchNorm(_BatchNorm):
    """Batch normalisation with Keras's constants; where a channel has but one value to take
    statistics from, the running ones are used.
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
        """Any number of dimensions will do."""


def he_normal(layer: Convolution) -> Convolution:
    """Weights N(0, 2 / inputs), no offset."""
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def block(
    ndim: int, inputs: int, outputs: int, norm: str, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution and leaky rectifier of slope 0.2, with ``instance`` normalisation between them,
    ``batch`` normalisation after them, or ``none``.
    """
    layer = convolution(ndim, inputs, outputs, stride)
    layer.dilation = layer.padding = (dilation,) * ndim
    he_normal(layer)
    act = nn.LeakyReLU(0.2)
    orders: dict[str, list[nn.Module]] = {
        "instance": [layer, InstanceNorm(), act],
        "batch": [layer, act, BatchNorm(outputs)],
        "none": [layer, act],
    }
    return nn.Sequential(*orders[norm])


class Features(nn.ModuleList):
    """Maps of an image, fine to coarse: the image itself, then one of each width, each halving
    the grid (rounding up) by a stride and followed by two more blocks.
    """

    def __init__(self, ndim: int, widths: Sequence[int], norm: str) -> None:
        super().__init__(
            nn.Sequential(
                block(ndim, a, b, norm, stride=2), block(ndim, b, b, norm), block(ndim, b, b, norm)
            )
            for a, b in pairwise([1, *widths])
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for level in self:
            maps.append(level(maps[-1]))
        return maps


class AffineOfDisplacement(nn.Module):
    """As published: u <- (I + A) u + t, the homogeneous matrix acting on the displacement.

    (A | t) is linear in the global means of both feature maps and zero at the start.  Where u is
    zero only t can move anything: no scaling and no rotation arises.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.linear = _zeros(2 * features, ndim)

    def forward(self, fixed: Tensor, warped: Tensor, u: Tensor) -> Tensor:
        pooled = torch.cat([fixed, warped], 1).flatten(2).mean(2)
        matrix = self.linear(pooled).float().view(len(u), u.shape[1], -1)  # (B, D, D + 1)
        return u + _affine(matrix, u)


class AffineOfCoordinates(nn.Module):
    """Mended: the affine map of the coordinates, then u: id + u <- (id + u) o (x + A x' + t).

    x' runs from -1 to 1 over the level's grid, so that every coefficient is the displacement, in
    voxels, that it makes at the border; (A | t) is linear in the means of both feature maps and of
    their products with x', for a mean alone does not say where something lies.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.linear = _zeros(2 * features * (ndim + 1), ndim)

    def forward(self, fixed: Tensor, warped: Tensor, u: Tensor) -> Tensor:
        x = _unit_grid(u)
        weights = torch.cat([x, torch.ones_like(x[:, :1])], 1).flatten(2)  # (1, D + 1, N)
        maps = torch.cat([fixed, warped], 1).float().flatten(2)
        moments = maps @ weights.mT / maps.shape[2]  # (B, C, D + 1)
        matrix = self.linear(moments.flatten(1)).float().view(len(u), u.shape[1], -1)
        return ops.compose(_affine(matrix, x), u)


def _zeros(inputs: int, ndim: int) -> nn.Linear:
    """D (D + 1) affine coefficients, zero at the start."""
    layer = nn.Linear(inputs, ndim * (ndim + 1))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _affine(matrix: Tensor, x: Tensor) -> Tensor:
    """A x + t of every vector of a field (B, D, *spatial), (A | t) being (B, D, D + 1)."""
    moved = matrix[:, :, :-1] @ x.flatten(2) + matrix[:, :, -1:]
    return moved.view(len(matrix), *x.shape[1:])


def _unit_grid(u: Tensor) -> Tensor:
    """(1, D, *spatial) coordinates from -1 to 1 over the cells of a field's grid."""
    half = u.new_tensor(u.shape[2:]).view(1, -1, *[1] * (u.ndim - 2)) / 2
    return (ops.identity_grid(u.shape[2:], u) + 0.5) / half - 1


class Estimator(nn.Module):
    """A level: the displacement that arrived is made better.

    Affine map; moving features warped again; cost volume; blocks whose every output is appended
    to their input; from it all, and through a context of dilated blocks where wanted, the
    displacement, or with ``residual`` the one that comes before the affine map's.
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

        def flow(inputs: int) -> nn.Module:
            layer = convolution(ndim, inputs, ndim)
            if flow_deviation is None:
                return he_normal(layer)
            return initialise_flow(layer, flow_deviation)

        self.radius, self.residual = radius, residual
        self.affine = affine(ndim, features)
        width = (2 * radius + 1) ** ndim + features + ndim + carried
        self.dense = nn.ModuleList()
        for outputs in dense:
            self.dense.append(block(ndim, width, outputs, norm))
            width += outputs
        self.width = width
        self.flow = flow(width)
        joints = zip(pairwise([width, *context]), dilations, strict=True)
        layers = [block(ndim, a, b, norm, dilation=d) for (a, b), d in joints]
        last = [flow(context[-1])] if context else []
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
            change = change + displacement(self.context, x)
        return ops.compose(change, u) if self.residual else change, x


class Rise(nn.Module):
    """To the next finer grid: a convolution each of the displacement and of the dense features,
    both carried up before; the displacement in the new grid's voxels.

    ``smooth``: the displacement goes up linearly and its convolution starts as the identity;
    otherwise, as published, nearest and from random weights.
    """

    def __init__(self, ndim: int, features: int, carried: int, smooth: bool) -> None:
        super().__init__()
        self.flow = he_normal(convolution(ndim, ndim, ndim))
        self.features = he_normal(convolution(ndim, features, carried))
        self.carry = ops.resize if smooth else ops.resize_nearest
        if smooth:
            nn.init.dirac_(self.flow.weight)

    def forward(self, u: Tensor, x: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        ratio = u.new_tensor([new / old for new, old in zip(shape, u.shape[2:], strict=True)])
        up = ops.full_precision(self.flow)(self.carry(u, shape))
        up = up * ratio.view(1, -1, *[1] * (u.ndim - 2))
        return up, self.features(ops.resize_nearest(x, shape))


class Pyramid(nn.Module):
    """One field for every level, len(widths) + 1 of them, the last on the fixed grid.

    Args:
        ndim: 2 or 3.
        widths: Channels of the feature pyramid, which both images share, fine to coarse.
        radius: Of the cost volumes, in voxels of each level.
        dense: Widths of the blocks of an estimator.
        carried: Dense features handed to the next finer level.
        last: Finest level with an estimator, 0 being the fixed grid; the fields of finer levels
            are interpolated.  At 0 nearly all the time goes into that level.
        context: Widths of the dilated blocks, none of them for no context network.
        dilations: Their dilations.
        context_at: ``finest`` estimator or, as published, ``coarsest``.
        affine: What the affine map of each level acts on: ``coordinates`` or, as published,
            ``displacement``.
        residual: Each estimator adds to (is composed with) the displacement it is given; as
            published it answers with all of it.
        norm: ``encoder``: of each instance, in the feature pyramid only; ``batch``: everywhere.
        flow_deviation: Of the first weights of the layers that give displacements, and the
            displacement is carried up smoothly; null: as published, He normal throughout.

    With widths (16, 32, 32, 32), dense (64, 64, 32, 16, 8), context (64, 64, 64, 32, 16, 8) and
    all else as published this is the network of 8,568,791 parameters.
    """

    def __init__(
        self,
        ndim: int,
        widths: Sequence[int] = (16, 32, 32, 32),
        radius: int = 2,
        dense: Sequence[int] = (64, 64, 32, 16, 8),
        carried: int = 32,
        last: int = 0,
        context: Sequence[int] = (64, 64, 64, 32, 16, 8),
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 1),
        context_at: str = "coarsest",
        affine: str = "displacement",
        residual: bool = False,
        norm: str = "batch",
        flow_deviation: float | None = None,
    ) -> None:
        super().__init__()
        encoder, rest = {"batch": ("batch", "batch"), "encoder": ("instance", "none")}[norm]
        self.features = Features(ndim, widths, encoder)
        self.together = encoder != "batch"
        channels = [1, *widths][last:][::-1]  # of the levels with an estimator, coarse to fine
        place = {"coarsest": 0, "finest": len(channels) - 1}[context_at]
        estimators = [
            Estimator(
                ndim,
                features,
                carried if i else 0,
                {"displacement": AffineOfDisplacement, "coordinates": AffineOfCoordinates}[affine],
                radius,
                dense,
                context if i == place else (),
                dilations if i == place else (),
                residual,
                rest,
                flow_deviation,
            )
            for i, features in enumerate(channels)
        ]
        self.estimators = nn.ModuleList(estimators)
        smooth = flow_deviation is not None
        self.rises = nn.ModuleList(Rise(ndim, e.width, carried, smooth) for e in estimators[:-1])

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        levels = self.seen(fixed, moving)[::-1]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *levels[0][0].shape[2:])
        carried: list[Tensor] = []
        fields: list[Tensor] = []
        for i, estimator in enumerate(self.estimators):
            u, x = estimator(*levels[i], u, carried)
            fields.append(u)
            if i < len(self.rises):
                u, *carried = self.rises[i](u, x, levels[i + 1][0].shape[2:])
        return fields + [ops.resize_field(u, f.shape[2:]) for f, _ in levels[len(fields) :]]

    def seen(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Feature maps of both images, fine to coarse; as one batch unless its statistics count,
        which on a CPU is several times as fast.
        """
        if not self.together:
            return list(zip(self.features(fixed), self.features(moving), strict=True))
        maps = self.features(torch.cat([fixed, moving]))
        return [(m[: len(fixed)], m[len(fixed) :]) for m in maps]
