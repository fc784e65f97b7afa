"""Pairs of random images, and the outputs of unrolled models."""

import torch

from regnet_lab import ops
from regnet_lab.types import Pair, Registration
from tests.helpers.images import smooth


def make_random_images(shape, batch=1):
    """Return white noise for the fixed and the moving image, always the same."""
    return torch.rand(2, batch, 1, *shape, generator=torch.Generator().manual_seed(1))


def make_random_pair(shape, batch=1, **more):
    """Return a pair of :func:`make_random_images` with a spacing of 1."""
    fixed, moving = make_random_images(shape, batch)
    spacing = torch.ones(batch, len(shape))
    return Pair(fixed=fixed, moving=moving, spacing=spacing, name=["a"] * batch, **more)


def make_unrolled_case(shape, units=3):
    """Return a pair with its true displacement, and fields of two levels with ``units`` each."""
    ndim, half_shape = len(shape), [-(-n // 2) for n in shape]
    grids = [half_shape] * units + [[*shape]] * units
    fields = [2 * torch.randn(1, ndim, *grid) for grid in grids]
    fixed, moving = smooth(shape, 1), smooth(shape, 2)
    truth = 4 * smooth(shape, 3, channels=ndim) - 2
    pair = Pair(
        fixed=fixed, moving=moving, spacing=torch.ones(1, ndim), name=["a"], displacement=truth
    )
    return pair, Registration(fields, ops.warp(moving, fields[-1]))
