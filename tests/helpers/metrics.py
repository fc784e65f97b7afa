"""Pairs for tests of metrics."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab.types import Pair

SHAPES = pytest.mark.parametrize("shape", [(17, 19), (12, 13, 14)])


SPACING = (1.5, 0.7, 3.0)


def textured(shape, rng, count=1, sigma=2.0):
    noise = gaussian_filter(rng.normal(size=(count, *shape)), [0, *[sigma] * len(shape)])
    return noise / noise.std()


def as_pair(fixed, moving, **others):
    def batched(x):
        return torch.as_tensor(np.asarray(x))[None]

    spacing = others.pop("spacing", SPACING[: fixed.ndim])
    return Pair(
        fixed=batched(fixed)[None],
        moving=batched(moving)[None],
        spacing=batched(np.array(spacing)),
        name=["case"],
        **{
            key: batched(value)[None] if key.endswith(("labels", "mask")) else batched(value)
            for key, value in others.items()
        },
    )
