"""A small network for all scales: match, smooth, add a velocity, coarse to fine.

After PWC-Net (Sun et al., CVPR 2018), with weights shared by all levels, so that each level's
gradient trains the others.  Costs are meaningful before training: they include those of the
self-similarity context (Heinrich et al., MICCAI 2013), which hardly depends on contrast.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import (
    InstanceNorm,
    init_flow_layer,
    make_conv_block,
    make_convolution,
)
from regnet_lab.ops.cost_volume import cost_volume, iterate_offsets
from regnet_lab.ops.similarity import box_sum, mind_ssc

Maps = tuple[Tensor, Tensor]  # learned features and self-similarity context, (B, C, *level)
SMOOTHING_WINDOW = 5  # voxels, for averaging costs


@ops.full_precision
def compute_context(image: Tensor) -> Tensor:
    """Compute the self-similarity context (B, 2 D (D - 1), *spatial), minus each voxel's mean."""
    context = mind_ssc(image)
    return context - context.mean(1, keepdim=True)


@ops.full_precision
def compute_mean_offset(cost: Tensor, rate: Tensor, steps: Tensor) -> Tensor:
    """Return the mean of offsets (D, N), weighted by softmax(rate * cost): (B, D, *level)."""
    return torch.einsum("dn,bn...->bd...", steps, (rate * cost).softmax(1))


@ops.full_precision
def smooth_costs(cost: Tensor) -> Tensor:
    """Average costs over a neighbourhood."""
    return box_sum(cost, SMOOTHING_WINDOW, "replicate") / SMOOTHING_WINDOW ** (cost.ndim - 2)


class Encoder(nn.Module):
    """Encoder of an image and its self-similarity context on a level's grid.

    The image is resized to twice the level's resolution.
    """

    def __init__(self, ndim: int, features: int) -> None:
        super().__init__()
        self.stem = make_conv_block(ndim, 1, features, 2, normalised=True)
        self.body = nn.Sequential(
            make_conv_block(ndim, features + 2 * ndim * (ndim - 1), features, normalised=True),
            make_convolution(ndim, features, features),
            InstanceNorm(),
        )

    def forward(self, image: Tensor, context: Tensor) -> Maps:
        features = self.stem(ops.resize(image, [2 * n for n in context.shape[2:]]))
        return self.body(torch.cat([features, context], 1)).float(), context


class VelocityEstimator(nn.Module):
    """Predicts the velocity that improves a displacement, on any level.

    Dilated convolutions of: the costs of features and of contexts, their mean offsets (for contexts
    also after averaging), the fixed image's features and the displacement.
    """

    offsets: Tensor  # (D, N)

    def __init__(
        self, ndim: int, features: int, width: int, radius: int, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        self.radius = radius
        self.sharpness = nn.Parameter(torch.tensor([3.0, 30.0, 300.0]).log())  # of the softmax
        steps = torch.tensor([*iterate_offsets(ndim, radius)]).float()
        self.register_buffer("offsets", steps.T, persistent=False)
        widths = [2 * len(steps) + 4 * ndim + features] + [width] * len(dilations)
        layers = zip(pairwise(widths), dilations, strict=True)
        blocks = [make_conv_block(ndim, a, b, dilation=d) for (a, b), d in layers]
        self.layers = nn.Sequential(*blocks)
        self.flow = init_flow_layer(make_convolution(ndim, width, ndim), 1e-3)

    def forward(self, fixed: Maps, moving: Maps, u: Tensor) -> Tensor:
        learned, context = (
            cost_volume(f, ops.warp(m, u), self.radius) for f, m in zip(fixed, moving, strict=True)
        )
        costs = learned, context, smooth_costs(context)
        rated = zip(costs, self.sharpness.exp(), strict=True)
        means = [compute_mean_offset(cost, rate, self.offsets) for cost, rate in rated]
        x = torch.cat([learned, 10 * context, *means, fixed[0], u], 1)
        return ops.full_precision(self.flow)(self.layers(x))


class SharedPyramid(nn.Module):
    """Pyramid network with shared weights; one field for each level, the last on half the grid.

    Args:
        ndim: 2 or 3.
        levels: Number of levels; the coarsest grid has 2^-levels as many voxels along each axis.
        cost_volume_radius: Radius of the cost volumes, in voxels of each level.
        dilations: Dilations of the estimator's convolutions.
        integration_steps: Squarings when each predicted velocity is integrated; the total
            displacement is a composition of the results.
    """

    def __init__(
        self,
        ndim: int,
        levels: int = 3,
        encoder_channels: int = 16,
        estimator_channels: int = 32,
        cost_volume_radius: int = 1,
        dilations: Sequence[int] = (1, 2, 4, 1),
        integration_steps: int = 4,
    ) -> None:
        super().__init__()
        self.levels, self.integration_steps = levels, integration_steps
        self.encoder = Encoder(ndim, encoder_channels)
        self.estimator = VelocityEstimator(
            ndim, encoder_channels, estimator_channels, cost_volume_radius, dilations
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        images = torch.cat([fixed, moving])
        contexts = [compute_context(images)]
        for _ in range(self.levels):
            halved = [max(math.ceil(n / 2), 2) for n in contexts[-1].shape[2:]]
            contexts.append(ops.resize(contexts[-1], halved))
        coarsest = contexts[-1].shape[2:]
        u, fields = fixed.new_zeros(len(fixed), len(coarsest), *coarsest), []
        for context in contexts[:0:-1]:
            maps = self.encoder(images, context)
            sides = zip(*(m.split(len(fixed)) for m in maps), strict=True)
            u = ops.resize_field(u, context.shape[2:])
            u = ops.compose(ops.integrate(self.estimator(*sides, u), self.integration_steps), u)
            fields.append(u)
        return fields
