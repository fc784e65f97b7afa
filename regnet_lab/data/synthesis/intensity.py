"""How a deformed image differs from a mere resampling: density, noise and things that appear.

Images are (1, 1, *spatial) with 0 for air, made of Hounsfield units by a window from -1000; so a
published number of HU is to be divided by the window's width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import normal

RIM = (0.9, 0.6, 0.2)  # weights of an occlusion in its three outermost shells, from within


def sponge(
    rng: np.random.Generator,
    image: Tensor,
    u: Tensor,
    body: Tensor,
    limits: tuple[float, float] = (0.7, 1.3),
    spread: float = 0.1,
) -> Tensor:
    """Density follows volume: image clip(det(I + du/dx), limits) U(1 - spread, 1 + spread).

    A voxel of the deformed image holds the matter of det voxels of the original.  Published is
    I / clip(det) in Hounsfield units, which goes the same way where they are negative, with a
    determinant of swapped axes.

    Args:
        rng: Source of the factor.
        image: (1, 1, *spatial) deformed.
        u: (1, D, *spatial) from it to the original, voxels.
        body: (*spatial) where it changes.
        limits: Of the determinant.
        spread: See above.
    """
    factor = ops.jacobian_determinant(u).clamp(*limits) * rng.uniform(1 - spread, 1 + spread)
    return torch.where(body, image * factor, image)


def noisy(rng: np.random.Generator, image: Tensor, deviation: float, mean: float) -> Tensor:
    """With normal noise of a mean drawn from U(-mean, mean)."""
    return image + deviation * normal(rng, image.shape) + float(rng.uniform(-mean, mean))


def ellipsoid(shape: Sequence[int], centre: Sequence[float], axes: Sequence[float]) -> Tensor:
    """(*shape) true where sum ((x - centre) / axes)^2 <= 1, voxels."""
    x = ops.identity_grid(shape, torch.zeros(1))[0]
    far = (x - torch.tensor(centre).view(-1, *[1] * len(shape))) / torch.tensor(axes).view(
        -1, *[1] * len(shape)
    )
    return far.square().sum(0) <= 1


def occluded(
    rng: np.random.Generator,
    image: Tensor,
    lung: Tensor,
    spacing: Sequence[float],
    count: int = 10,
    values: tuple[float, float] = (0.143, 0.157),
    axes: tuple[float, float] = (3.0, 15.0),
) -> tuple[Tensor, Tensor]:
    """Ellipsoids of one density each in the lung, fading over their three outermost voxels.

    Args:
        rng: Source of their places, sizes and densities.
        image: (1, 1, *spatial).
        lung: (*spatial).
        spacing: Millimetres per voxel.
        count: How many.
        values: Range of density; -800 to -780 HU by a window of 1400.
        axes: Range of the half axes, mm.

    Returns:
        The image and (*spatial) where it no longer shows what it did.
    """
    inside = ndimage.binary_erosion(lung.numpy(), iterations=3)
    places, hidden = np.argwhere(inside), np.zeros(inside.shape, bool)
    for _ in range(count if len(places) else 0):
        centre = places[rng.integers(len(places))]
        half = rng.uniform(*axes, len(centre)) / np.array(spacing)
        shape = ellipsoid(image.shape[2:], centre.tolist(), half.tolist()).numpy() & inside
        weight = shape.astype(np.float32)
        shell = shape
        for share in reversed(RIM):
            core = ndimage.binary_erosion(shell)
            weight[shell & ~core] = share
            shell = core
        mix = torch.from_numpy(weight)
        image = image + mix * (float(rng.uniform(*values)) - image)
        hidden |= shape
    return image, torch.from_numpy(hidden)
