"""Intensity changes of deformed CT images: density, noise and occlusions.

Images are (1, 1, *spatial), mapped from Hounsfield units by a window that starts at -1000 HU (air
is 0). To convert an intensity from HU, divide it by the width of the window.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import sample_normal

OCCLUSION_EDGE_WEIGHTS = (0.9, 0.6, 0.2)  # opacity of the outer three voxels, from the inside


def apply_sponge_model(
    rng: Generator,
    image: Tensor,
    u: Tensor,
    body: Tensor,
    limits: tuple[float, float] = (0.7, 1.3),
    spread: float = 0.1,
) -> Tensor:
    """Scale density with volume: image clip(det(I + du/dx), limits) U(1 - spread, 1 + spread).

    A voxel of the deformed image contains the tissue of det voxels of the original. The original
    implementation computes I / clip(det) in Hounsfield units, which has the same direction where
    these are negative, and a determinant with swapped axes.

    Args:
        rng: Source of random numbers.
        image: (1, 1, *spatial) deformed image.
        u: (1, D, *spatial) displacement from the deformed to the original image, voxels.
        body: (*spatial) mask of the voxels to change.
        limits: Range to which the determinant is clipped.
        spread: Half width of the random factor's range.
    """
    factor = ops.jacobian_determinant(u).clamp(*limits) * rng.uniform(1 - spread, 1 + spread)
    return torch.where(body, image * factor, image)


def add_noise(rng: Generator, image: Tensor, deviation: float, mean: float) -> Tensor:
    """Add normal noise whose mean is drawn from U(-mean, mean)."""
    return image + deviation * sample_normal(rng, image.shape) + float(rng.uniform(-mean, mean))


def make_ellipsoid_mask(
    shape: Sequence[int], centre: Sequence[float], axes: Sequence[float]
) -> Tensor:
    """Make a (*shape) mask, true where sum(((x - centre) / axes)^2) <= 1, in voxels."""
    c, a = (torch.tensor(values).view(-1, *[1] * len(shape)) for values in (centre, axes))
    x = ops.identity_grid(shape, torch.zeros(1))[0]
    return ((x - c) / a).square().sum(0) <= 1


def add_occlusions(
    rng: Generator,
    image: Tensor,
    lung: Tensor,
    spacing: Sequence[float],
    count: int = 10,
    values: tuple[float, float] = (0.143, 0.157),
    axes: tuple[float, float] = (3.0, 15.0),
) -> tuple[Tensor, Tensor]:
    """Add ellipsoids of constant density to the lung, blended over their three outermost voxels.

    Args:
        rng: Source of random numbers.
        image: (1, 1, *spatial).
        lung: (*spatial) lung mask.
        spacing: Voxel size, mm.
        count: Number of ellipsoids.
        values: Range of density; the default is -800 to -780 HU in a window of 1400 HU.
        axes: Range of the half axes, mm.

    Returns:
        The image and a (*spatial) mask of the occluded voxels.
    """
    inside = ndimage.binary_erosion(lung.numpy(), iterations=3)
    centers, occluded = np.argwhere(inside), np.zeros(inside.shape, bool)
    for _ in range(count if len(centers) else 0):
        center = centers[rng.integers(len(centers))]
        half_axes = rng.uniform(*axes, len(center)) / np.array(spacing)
        mask = make_ellipsoid_mask(image.shape[2:], center.tolist(), half_axes.tolist())
        ellipsoid = mask.numpy() & inside
        weight, shell = ellipsoid.astype(np.float32), ellipsoid
        for opacity in reversed(OCCLUSION_EDGE_WEIGHTS):
            core = ndimage.binary_erosion(shell)
            weight[shell & ~core] = opacity
            shell = core
        alpha = torch.from_numpy(weight)
        image = image + alpha * (float(rng.uniform(*values)) - image)
        occluded |= ellipsoid
    return image, torch.from_numpy(occluded)
