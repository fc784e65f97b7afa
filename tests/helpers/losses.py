"""Pairs, registrations and fields for tests of losses."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab.types import Pair, Registration

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
SPACING = (1.5, 0.7, 3.0)


def smooth(shape, channels=1, batch=1, sigma=2.0, seed=0):
    """Return smoothed Gaussian noise (batch, channels, *shape), std 1."""
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(noise / noise.std()).float()


def make_pair(shape, batch=1, **others):
    fixed, moving = smooth(shape, batch=batch, seed=1), smooth(shape, batch=batch, seed=2)
    spacing = torch.tensor(SPACING[: len(shape)]).expand(batch, -1)
    return Pair(fixed=fixed, moving=moving, spacing=spacing, name=["case 7"] * batch, **others)


def make_complete_pair(shape, batch=1):
    """Return a pair with every key that a loss can require."""
    scale = torch.tensor(shape) - 1.0
    points = torch.rand(2, batch, 6, len(shape), generator=torch.Generator().manual_seed(0))
    return make_pair(
        shape,
        batch,
        fixed_labels=smooth(shape, 4, batch, 1.0, 3).argmax(1, keepdim=True),
        moving_labels=smooth(shape, 4, batch, 1.0, 4).argmax(1, keepdim=True),
        fixed_points=points[0] * scale,
        moving_points=points[1] * scale,
        displacement=smooth(shape, len(shape), batch, seed=5),
        fixed_mask=(smooth(shape, batch=batch, seed=6) > -0.5).float(),
    )


def make_registration(u, *coarser):
    """Return a registration for losses that only use its fields."""
    return Registration([*coarser, u], torch.zeros(len(u), 1, *u.shape[2:]))


def linear_field(matrix, shape):
    """Return the field u(x) = matrix x."""
    moved = np.einsum("ij,j...->i...", matrix, np.indices(shape, dtype=float))
    return torch.from_numpy(moved).float()[None]


def constant_field(vector, shape):
    return torch.tensor(vector).view(1, -1, *[1] * len(shape)).expand(-1, -1, *shape).clone()


def random_matrix(ndim, seed=0):
    return np.random.default_rng(seed).normal(size=(ndim, ndim))
