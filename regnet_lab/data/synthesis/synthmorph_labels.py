"""Random label maps that look like nothing in particular, as functions of the coordinates.

Shapes of several scales, walls around some of them, and often a body in an empty field, from which
a network learns to match whatever it is shown (label maps by the largest of several noise images:
Hoffmann et al., SynthMorph, IEEE TMI 2022, arXiv 2004.10282).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import normal, smooth_noise, uniform

Range = tuple[float, float]
TEXTURES = 2
MARGIN = 1.3  # side of the lattice an anatomy is drawn on over that of the image


def between(rng: np.random.Generator, bounds: Range) -> float:
    """Uniform within a range."""
    return float(rng.uniform(*bounds))


@dataclass(frozen=True)
class Anatomy:
    """One label map and what is seen inside its labels, at any point of and around a grid.

    Args:
        shape: Of the grid.
        lattice: (1, K + 1 + TEXTURES, *lattice) K potentials, the outline's roughness, textures.
        wall: (K,) thickness of each region's wall, in units of the potentials; 0: it has none.
        radii: (D,) of the body, in units of half the field of view; infinite: there is none.
    """

    shape: tuple[int, ...]
    lattice: Tensor
    wall: Tensor
    radii: Tensor

    @property
    def labels(self) -> int:
        """Labels run from 0, the outside of the body, to this number, not all of them shown."""
        return 2 * len(self.wall)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """What lies at points (1, D, *grid), voxels.

        Returns:
            (1, 1, *grid) labels, region k being k + 1 and its wall K + k + 1, and
            (1, TEXTURES, *grid) textures of about unit variance.
        """
        ndim, regions = len(self.shape), len(self.wall)
        along = (1, -1, *[1] * ndim)
        half = torch.tensor(self.shape).view(along) / 2
        x = (points + 0.5) / half - 1  # -1 to 1 over the image
        cells = torch.tensor(self.lattice.shape[2:]).view(along)
        seen = ops.sample(self.lattice, (x / MARGIN + 1) / 2 * cells - 0.5)
        potentials, rough, texture = seen.split([regions, 1, TEXTURES], 1)
        first, region = potentials.max(1, keepdim=True)
        second = potentials.scatter(1, region, -torch.inf).amax(1, keepdim=True)
        labels = region + 1 + regions * (first - second < self.wall[region])
        inside = (x / self.radii.view(along)).square().sum(1, keepdim=True) < 1 + 0.35 * rough
        return labels * inside, texture


@dataclass(frozen=True)
class Shapes:
    """Draws anatomies.  The ranges are our own, chosen by looking at what they give.

    Args:
        regions: Fewest and most of them; walls may double the labels.
        fine: Range of the width of small shapes' noise over the field of view.
        coarse: Range of that of large ones.
        walled: Share of the regions that have a wall, as a heart, a bone or a bowel has.
        wall: Range of its thickness over the spread of the potentials.
        body: Share of anatomies that have an outline in an empty field.
        radius: Range of its radii over half the field of view.
    """

    regions: tuple[int, int] = (3, 12)
    fine: Range = (0.04, 0.09)
    coarse: Range = (0.09, 0.25)
    walled: float = 0.3
    wall: Range = (0.1, 0.5)
    body: float = 0.6
    radius: Range = (0.5, 1.2)

    def __call__(self, rng: np.random.Generator, shape: Sequence[int]) -> Anatomy:
        regions = int(rng.integers(*self.regions, endpoint=True))
        small = int(rng.integers(0, regions, endpoint=True))
        lattice = [max(round(MARGIN * n / 2), 8) for n in shape]
        fine, coarse = (between(rng, bounds) / MARGIN for bounds in (self.fine, self.coarse))
        parts = [
            smooth_noise(rng, count, width, lattice)
            for count, width in ((small, fine), (regions - small, coarse), (1, 0.15))
            if count
        ]
        textures = [smooth_noise(rng, 1, fine / 2, lattice), normal(rng, (1, 1, *lattice))]
        wall = torch.from_numpy(rng.uniform(*self.wall, regions)).float()
        radii = torch.from_numpy(rng.uniform(*self.radius, len(shape))).float()
        return Anatomy(
            tuple(shape),
            torch.cat([*parts, *textures], 1),
            wall * (uniform(rng, regions) < 2 * self.walled - 1),
            radii if rng.random() < self.body else torch.full_like(radii, torch.inf),
        )
