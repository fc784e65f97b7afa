"""One small network for every scale: match, smooth, add a flow, from coarse to fine.

After PWC-Net's pyramid (Sun et al., CVPR 2018), with the weights of all levels shared, so that a
level teaches all others, and with costs that have a meaning before training: those of the
self-similarity context (Heinrich et al., MICCAI 2013), which hardly depends on contrast.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import InstanceNorm, activated, convolution, initialise_flow
from regnet_lab.ops.cost_volume import cost_volume, offsets
from regnet_lab.ops.similarity import box_sum, mind_ssc

Maps = tuple[Tensor, Tensor]  # learned features and context, (B, C, *level)
SMOOTHED = 5  # voxels along which costs are averaged


@ops.full_precision
def context(image: Tensor) -> Tensor:
    """(B, 2 D (D - 1), *spatial) self-similarity context, each voxel's mean taken away."""
    similar = mind_ssc(image)
    return similar - similar.mean(1, keepdim=True)


@ops.full_precision
def pointed(cost: Tensor, rate: Tensor, steps: Tensor) -> Tensor:
    """(B, D, *level) mean of the offsets (D, N), weighed by the softmax of rate times cost."""
    return torch.einsum("dn,bn...->bd...", steps, (rate * cost).softmax(1))


@ops.full_precision
def averaged(cost: Tensor) -> Tensor:
    """Over a neighbourhood."""
    return box_sum(cost, SMOOTHED, "replicate") / SMOOTHED ** (cost.ndim - 2)


class Encoder(nn.Module):
    """Learned features of an image and its context, on a level's grid.

    The image is seen on a grid twice as fine.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.stem = activated(ndim, 1, features, 2, normalised=True)
        self.body = nn.Sequential(
            activated(ndim, features + 2 * ndim * (ndim - 1), features, normalised=True),
            convolution(ndim, features, features),
            InstanceNorm(),
        )

    def forward(self, image: Tensor, similar: Tensor) -> Maps:
        seen = self.stem(ops.resize(image, [2 * n for n in similar.shape[2:]]))
        return self.body(torch.cat([seen, similar], 1)).float(), similar


class Estimator(nn.Module):
    """What is still to be added to a displacement, as a velocity, on any level.

    The costs of features and of contexts, the mean offsets they point to, the latter's over a
    neighbourhood, the fixed image's features and the displacement go through dilated convolutions.
    """

    offsets: Tensor  # (D, N)

    def __init__(
        self, ndim: int, features: int, width: int, radius: int, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        self.radius = radius
        self.sharpness = nn.Parameter(torch.tensor([3.0, 30.0, 300.0]).log())  # of the costs
        steps = torch.tensor([*offsets(ndim, radius)]).float()
        self.register_buffer("offsets", steps.T, persistent=False)
        widths = [2 * len(steps) + 4 * ndim + features] + [width] * len(dilations)
        layers = []
        for (a, b), dilation in zip(pairwise(widths), dilations, strict=True):
            layer = activated(ndim, a, b)
            layer[0].dilation = layer[0].padding = (dilation,) * ndim  # type: ignore[assignment]
            layers.append(layer)
        self.layers = nn.Sequential(*layers)
        self.flow = initialise_flow(convolution(ndim, width, ndim), 1e-3)

    def forward(self, fixed: Maps, moving: Maps, u: Tensor) -> Tensor:
        learned, similar = (
            cost_volume(f, ops.warp(m, u), self.radius) for f, m in zip(fixed, moving, strict=True)
        )
        costs = learned, similar, averaged(similar)
        rates = self.sharpness.exp()
        means = [pointed(cost, r, self.offsets) for cost, r in zip(costs, rates, strict=True)]
        x = torch.cat([learned, 10 * similar, *means, fixed[0], u], 1)
        return ops.full_precision(self.flow)(self.layers(x))


class SharedPyramid(nn.Module):
    """One field for each level, from coarse to fine, the last on half the fixed grid.

    Args:
        ndim: 2 or 3.
        levels: Their number; the coarsest grid has 2^-levels as many voxels along each axis.
        features: Channels of the encoder.
        width: Of the estimator.
        radius: Of the cost volumes, in voxels of each level.
        dilations: Of the estimator's convolutions.
        squarings: By which each estimate, a velocity, is integrated; the answer is a composition of
            such flows.
    """

    def __init__(
        self,
        ndim: int,
        levels: int = 3,
        features: int = 16,
        width: int = 32,
        radius: int = 1,
        dilations: Sequence[int] = (1, 2, 4, 1),
        squarings: int = 4,
    ) -> None:
        super().__init__()
        self.levels, self.squarings = levels, squarings
        self.encoder = Encoder(ndim, features)
        self.estimator = Estimator(ndim, features, width, radius, dilations)

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        images = torch.cat([fixed, moving])
        contexts = [context(images)]
        for _ in range(self.levels):
            halved = [max(math.ceil(n / 2), 2) for n in contexts[-1].shape[2:]]
            contexts.append(ops.resize(contexts[-1], halved))
        coarsest = contexts[-1].shape[2:]
        u, fields = fixed.new_zeros(len(fixed), len(coarsest), *coarsest), []
        for similar in contexts[:0:-1]:
            maps = self.encoder(images, similar)
            sides = zip(*(m.split(len(fixed)) for m in maps), strict=True)
            u = ops.resize_field(u, similar.shape[2:])
            u = ops.compose(ops.integrate(self.estimator(*sides, u), self.squarings), u)
            fields.append(u)
        return fields
