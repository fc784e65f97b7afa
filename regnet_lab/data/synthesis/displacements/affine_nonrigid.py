"""DIRV-Net's synthetic displacement fields: affine, non-rigid and white noise.

All settings are in voxels; the voxel size has no effect. In the paper a field is the sum of
:class:`Affine` and :class:`NonRigid`, and one in a thousand is :class:`WhiteNoise` instead; see
``conf/data/chessboard.yaml``. Ranges are (lowest, highest).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.base import apply_separable, compute_gaussian_weights
from regnet_lab.data.synthesis.phantom import sample_normal

Range = tuple[float, float]


@dataclass(frozen=True)
class WhiteNoise:
    """Normal noise, scaled so that its largest component is ``maximum`` voxels."""

    maximum: float = 0.005

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        noise = sample_normal(rng, (1, len(shape), *shape))
        return noise * (self.maximum / noise.abs().max())


@dataclass(frozen=True)
class Affine:
    """Rotation, shear and scale about a point near the center, in random order, and translation.

    M = T C (product of the three, shuffled) C^-1 with C the shift to the center; the field is
    M^-1 x - x, since it warps backward.
    """

    # range of the center's offset from the image center along each axis, voxels
    centre_shift: Range = (-2.0, 2.0)
    translation: Range = (-2.0, 2.0)  # range along each axis, voxels
    rotation: Range = (-1.5, 1.5)  # range of the angle in the plane of any two axes, degrees
    shear: Range = (-0.04, 0.04)  # range of the off-diagonal elements of the shear matrix
    # ranges of scale; one is drawn per field, then a scale per axis
    scales: Sequence[Range] = ((0.98, 1.04), (0.96, 1.02))

    def sample_matrix(self, rng: Generator, shape: Sequence[int]) -> Tensor:
        """Sample the (1, D+1, D+1) matrix M, in voxels."""
        ndim = len(shape)
        angles = np.triu(np.radians(rng.uniform(*self.rotation, (ndim, ndim))), 1)
        shear = rng.uniform(*self.shear, (ndim, ndim))
        np.fill_diagonal(shear, 1)
        scale = rng.uniform(*self.scales[int(rng.integers(len(self.scales)))], ndim)
        turn = torch.matrix_exp(torch.from_numpy(angles - angles.T)).numpy()
        parts = [turn, shear, np.diag(scale)]
        linear = np.linalg.multi_dot([parts[k] for k in rng.permutation(3)])
        center = (np.array(shape) - 1) / 2 + rng.uniform(*self.centre_shift, ndim)
        matrix = np.eye(ndim + 1)
        matrix[:-1, :-1] = linear
        matrix[:-1, -1] = center - linear @ center + rng.uniform(*self.translation, ndim)
        return torch.from_numpy(matrix)[None]

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        return ops.affine_field(torch.linalg.inv(self.sample_matrix(rng, shape)), shape).float()


def compute_stretch_matrix(n: int, size: int) -> Tensor:
    """Compute the (n, size) linear interpolation from a coarse axis, with ends aligned."""
    at = torch.linspace(0, size - 1, n, dtype=torch.float64)
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0)


@dataclass(frozen=True)
class NonRigid:
    """Uniform noise on a coarse grid, smoothed, interpolated and rescaled to its original maximum.

    The coarse grid extends beyond the image by about half the largest kernel, so that the border,
    where the zero padding takes effect, is cropped.
    """

    # smallest and largest number of coarse grid points along an axis
    coarse_grid_size: tuple[int, int] = (30, 34)
    magnitude: Range = (0.1, 6.0)  # range of the largest component, voxels
    # (size, sigma) of successive smoothing Gaussians, with zero padding
    smoothing_kernels: Sequence[tuple[int, float]] = ((9, 3.0), (5, 2.0))

    def compute_axis_matrix(self, n: int, size: int) -> Tensor:
        """Compute the (n, size) matrix that smooths, interpolates and crops along an axis."""
        matrix = torch.eye(size, dtype=torch.float64)
        distance = torch.arange(size)[:, None] - torch.arange(size)
        for width, sigma in self.smoothing_kernels:
            matrix = compute_gaussian_weights(distance, sigma, width // 2) @ matrix
        margin = (max((width for width, _ in self.smoothing_kernels), default=0) + 1) // 2
        return (compute_stretch_matrix(n + 2 * margin, size) @ matrix)[margin : margin + n].float()

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        smallest, largest = self.coarse_grid_size
        counts = rng.integers(smallest, largest, len(shape), endpoint=True)
        magnitude = rng.uniform(*self.magnitude)
        noise = rng.uniform(-magnitude, magnitude, (len(shape), *counts)).astype(np.float32)
        matrices = [self.compute_axis_matrix(n, s) for n, s in zip(shape, counts, strict=True)]
        field = apply_separable(torch.from_numpy(noise), matrices)
        return (field * (float(np.abs(noise).max()) / field.abs().max()))[None]
