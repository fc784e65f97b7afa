"""Random label maps, defined as functions of continuous coordinates.

They contain shapes of several scales, walls around some of them, and often a body outline. As in
SynthMorph (Hoffmann et al., IEEE TMI 2022, arXiv 2004.10282), the label of a point is the index of
the largest of several noise images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import sample_normal, sample_smooth_noise, sample_uniform

Range = tuple[float, float]
NUM_TEXTURES = 2
LATTICE_MARGIN = 1.3  # size of the noise lattice relative to the image


def sample_in_range(rng: Generator, bounds: Range) -> float:
    """Sample uniformly within a range."""
    return float(rng.uniform(*bounds))


@dataclass(frozen=True)
class ShapeAnatomy:
    """A label map with textures, evaluated at any point on and around a grid."""

    shape: tuple[int, ...]
    # (1, K + 1 + NUM_TEXTURES, *lattice) K potentials, outline roughness and textures
    lattice: Tensor
    wall: Tensor  # (K,) thickness of each region's wall, in units of the potentials; 0 for none
    # (D,) radii of the body, in units of half the field of view; infinite without outline
    radii: Tensor

    @property
    def num_labels(self) -> int:
        """Largest possible label; 0 is the background. Not all labels need be visible."""
        return 2 * len(self.wall)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate labels and textures at points (1, D, *grid), in voxels.

        Labels (1, 1, *grid) are k + 1 for region k and K + k + 1 for its wall; textures
        (1, NUM_TEXTURES, *grid) have about unit variance.
        """
        ndim, regions = len(self.shape), len(self.wall)
        per_axis = (1, -1, *[1] * ndim)
        half_shape = torch.tensor(self.shape).view(per_axis) / 2
        x = (points + 0.5) / half_shape - 1  # -1 to 1 over the image
        cells = torch.tensor(self.lattice.shape[2:]).view(per_axis)
        values = ops.sample(self.lattice, (x / LATTICE_MARGIN + 1) / 2 * cells - 0.5)
        potentials, roughness, texture = values.split([regions, 1, NUM_TEXTURES], 1)
        first, region = potentials.max(1, keepdim=True)
        second = potentials.scatter(1, region, -torch.inf).amax(1, keepdim=True)
        labels = region + 1 + regions * (first - second < self.wall[region])
        radius = (x / self.radii.view(per_axis)).square().sum(1, keepdim=True)
        return labels * (radius < 1 + 0.35 * roughness), texture


@dataclass(frozen=True)
class RandomShapes:
    """Random generator of anatomies. The ranges are our own, chosen by visual inspection."""

    # smallest and largest number of regions; walls may double the labels
    num_regions: tuple[int, int] = (3, 12)
    # range of the noise width of small shapes, relative to the field of view
    small_shape_width: Range = (0.04, 0.09)
    large_shape_width: Range = (0.09, 0.25)  # range of the noise width of large shapes
    # probability that a region has a wall, as heart, bone or bowel have
    wall_probability: float = 0.3
    # range of the wall thickness, relative to the spread of the potentials
    wall_thickness: Range = (0.1, 0.5)
    body_probability: float = 0.6  # probability of a body outline with background around it
    # range of the outline's radii, relative to half the field of view
    body_radius: Range = (0.5, 1.2)

    def __call__(self, rng: Generator, shape: Sequence[int]) -> ShapeAnatomy:
        regions = int(rng.integers(*self.num_regions, endpoint=True))
        small = int(rng.integers(0, regions, endpoint=True))
        lattice = [max(round(LATTICE_MARGIN * n / 2), 8) for n in shape]
        fine = sample_in_range(rng, self.small_shape_width) / LATTICE_MARGIN
        coarse = sample_in_range(rng, self.large_shape_width) / LATTICE_MARGIN
        counts_and_widths = ((small, fine), (regions - small, coarse), (1, 0.15), (1, fine / 2))
        parts = [sample_smooth_noise(rng, c, w, lattice) for c, w in counts_and_widths if c]
        parts.append(sample_normal(rng, (1, 1, *lattice)))
        wall = torch.from_numpy(rng.uniform(*self.wall_thickness, regions)).float()
        radii = torch.from_numpy(rng.uniform(*self.body_radius, len(shape))).float()
        return ShapeAnatomy(
            tuple(shape),
            torch.cat(parts, 1),
            wall * (sample_uniform(rng, regions) < 2 * self.wall_probability - 1),
            radii if rng.random() < self.body_probability else torch.full_like(radii, torch.inf),
        )
