"""DIRV-Net's synthetic displacement fields: affine, non-rigid, and a trace of white noise.

All settings are in voxels and the millimetres per voxel change nothing.  Published, a field is the
sum of :class:`Affine` and :class:`NonRigid`, one in a thousand being :class:`WhiteNoise` instead;
``conf/data/chessboard.yaml`` composes it so.  Ranges are (lowest, highest).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.displacements.base import gaussian, separable
from regnet_lab.data.synthesis.phantom import normal

Range = tuple[float, float]


@dataclass(frozen=True)
class WhiteNoise:
    """Normal noise, scaled so that its largest component is ``maximum`` voxels."""

    maximum: float = 0.005

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        noise = normal(rng, (1, len(shape), *shape))
        return noise * (self.maximum / noise.abs().max())


@dataclass(frozen=True)
class Affine:
    """Rotation, shear and scale about a point near the middle, in random order, then translation.

    M = T C (product of the three, shuffled) C^-1 with C the shift to the centre; the field is
    M^-1 x - x, as it pulls back.

    Args:
        centre_shift: Range of the centre's shift from the middle along each axis, voxels.
        translation: Range along each axis, voxels.
        rotation: Range of the angle in the plane of any two axes, degrees.
        shear: Range of every element off the shear's diagonal.
        scales: Ranges of scale; one is chosen, then every axis draws from it.
    """

    centre_shift: Range = (-2.0, 2.0)
    translation: Range = (-2.0, 2.0)
    rotation: Range = (-1.5, 1.5)
    shear: Range = (-0.04, 0.04)
    scales: Sequence[Range] = ((0.98, 1.04), (0.96, 1.02))

    def matrix(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """(1, D+1, D+1) M, in voxels."""
        ndim = len(shape)
        angles = np.triu(np.radians(rng.uniform(*self.rotation, (ndim, ndim))), 1)
        shear = rng.uniform(*self.shear, (ndim, ndim))
        np.fill_diagonal(shear, 1)
        scale = rng.uniform(*self.scales[int(rng.integers(len(self.scales)))], ndim)
        turn = torch.matrix_exp(torch.from_numpy(angles - angles.T)).numpy()
        parts = [turn, shear, np.diag(scale)]
        linear = np.linalg.multi_dot([parts[k] for k in rng.permutation(3)])
        centre = (np.array(shape) - 1) / 2 + rng.uniform(*self.centre_shift, ndim)
        matrix = np.eye(ndim + 1)
        matrix[:-1, :-1] = linear
        matrix[:-1, -1] = centre - linear @ centre + rng.uniform(*self.translation, ndim)
        return torch.from_numpy(matrix)[None]

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        return ops.affine_field(torch.linalg.inv(self.matrix(rng, shape)), shape).float()


def stretch_matrix(n: int, seeds: int) -> Tensor:
    """(n, seeds) linear interpolation that lays the first and last seed on the outer voxels."""
    at = torch.linspace(0, seeds - 1, n, dtype=torch.float64)
    return (1 - (at[:, None] - torch.arange(seeds)).abs()).clamp(min=0)


@dataclass(frozen=True)
class NonRigid:
    """Uniform noise on a coarse grid of seeds, smoothed, stretched over the image and brought back
    to its largest component.

    Args:
        seeds: Fewest and most seeds along an axis.
        magnitude: Range of the largest component, voxels.
        kernels: (size, sigma) of the Gaussians that smooth the seeds in turn, zero outside.

    The seeds cover a few voxels more than the image, as many as the largest kernel has, so that the
    border, where smoothing fades, is cut away.
    """

    seeds: tuple[int, int] = (30, 34)
    magnitude: Range = (0.1, 6.0)
    kernels: Sequence[tuple[int, float]] = ((9, 3.0), (5, 2.0))

    def axis(self, n: int, seeds: int) -> Tensor:
        """(n, seeds) everything that happens along an axis: smoothing, stretching and cutting."""
        matrix = torch.eye(seeds, dtype=torch.float64)
        distance = torch.arange(seeds)[:, None] - torch.arange(seeds)
        for size, sigma in self.kernels:
            matrix = gaussian(distance, sigma, size // 2) @ matrix
        margin = (max((size for size, _ in self.kernels), default=0) + 1) // 2
        return (stretch_matrix(n + 2 * margin, seeds) @ matrix)[margin : margin + n].float()

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        fewest, most = self.seeds
        counts = rng.integers(fewest, most, len(shape), endpoint=True)
        magnitude = rng.uniform(*self.magnitude)
        noise = rng.uniform(-magnitude, magnitude, (len(shape), *counts)).astype(np.float32)
        field = separable(
            torch.from_numpy(noise), [self.axis(n, s) for n, s in zip(shape, counts, strict=True)]
        )
        return (field * (float(np.abs(noise).max()) / field.abs().max()))[None]
