"""Pairs that share an anatomy and nothing else, from which a network for any image is trained.

An anatomy a is seen twice, fixed(x) = a(F(x)) and moving(x) = a(M(x)), F and M being independent
diffeomorphisms, by two scanners drawn independently; M^-1 o F is the known answer.  After
Hoffmann et al., SynthMorph, IEEE TMI 2022 (arXiv 2004.10282).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import smooth_noise, uniform
from regnet_lab.data.synthesis.synthmorph_images import Contrast
from regnet_lab.data.synthesis.synthmorph_labels import Range, Shapes, between
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
SMALLEST = 16  # voxels along an axis
CELL = 3  # voxels of the image in one of the velocity's

Map = tuple[Tensor, Tensor]  # displacements (1, D, *shape) there and back


@dataclass(frozen=True)
class Flow:
    """Draws maps x -> A exp(v)(x) and their inverses, exp(-v) o A^-1.

    v is noise of two widths and A = exp(G) about the grid's middle, moved by t.  Velocities of
    several scales are SynthMorph's idea, the ranges our own: two such maps are apart by what an
    affine stage leaves between people: at 48 x 64 x 48 about 4 voxels on average, 12 at most.

    Args:
        amplitude: Range of the mean length of v over the field of view.
        width: Range of the noise's widths, likewise, log-uniform.
        linear: Deviation of the elements of G: turn, scale and shear that an affine stage left.
        shift: Largest t along each axis, over its side.
    """

    amplitude: Range = (0.0, 0.05)
    width: Range = (0.05, 0.3)
    linear: float = 0.04
    shift: float = 0.03

    def velocity(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """(1, D, *coarse) in voxels of its own grid."""
        coarse = [max(n // CELL, 8) for n in shape]
        low, high = np.log(self.width)
        widths = np.exp(rng.uniform(low, high, 2))
        share = rng.random()
        noise = [smooth_noise(rng, len(shape), float(w), coarse) for w in widths]
        v = share * noise[0] + (1 - share) * noise[1]
        size = math.prod(coarse) ** (1 / len(coarse))
        return v * (between(rng, self.amplitude) * size / v.square().sum(1).sqrt().mean())

    def matrix(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """(D+1, D+1) A, in voxels."""
        ndim = len(shape)
        generator = self.linear * torch.from_numpy(rng.standard_normal((ndim, ndim))).float()
        shift = self.shift * uniform(rng, ndim) * torch.tensor(shape)
        centre = (torch.tensor(shape) - 1) / 2
        matrix = torch.eye(ndim + 1)
        matrix[:-1, :-1] = torch.matrix_exp(generator)
        matrix[:-1, -1] = centre + shift - matrix[:-1, :-1] @ centre
        return matrix

    def __call__(self, rng: np.random.Generator, shape: Sequence[int]) -> Map:
        v, matrix = self.velocity(rng, shape), self.matrix(rng, shape)
        there, back = (ops.resize_field(ops.integrate(w, 5), shape) for w in (v, -v))
        x = ops.identity_grid(shape, v)
        moved = ops.transform_points(matrix, (x + there)[0].flatten(1).T).T.view(x.shape)
        unlinear = ops.affine_field(torch.linalg.inv(matrix)[None], shape)
        return moved - x, ops.compose(unlinear, back)


class Generated(Dataset[Pair]):
    """Random pairs; an item follows from (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape), 0 where nothing
    is taught, displacement (D, *shape) in voxels and spacing (D,), 1 mm.
    """

    def __init__(
        self,
        split: str,
        shape: Sequence[int],
        size: int | Mapping[str, int] = 1000,
        seed: int = 0,
        anatomy: Shapes | None = None,
        flow: Flow | None = None,
        contrast: Contrast | None = None,
        alike: float = 0.25,
        taught: int = 8,
    ) -> None:
        """Describe the pairs; none is made before it is asked for.

        Args:
            split: ``train``, ``val`` or ``test``; they share no pair.
            shape: Of the grid.
            size: Number of pairs, or of each split by its name.
            seed: Another seed, other pairs.
            anatomy: Draws what is seen.
            flow: Draws each of the two deformations.
            contrast: Draws each of the two scanners.
            alike: Share of pairs whose labels look alike to both scanners, apart from all faults.
            taught: Labels that a pair names, at most, drawn among those it shows: the price of
                soft Dice grows with them.

        Raises:
            UserError: A value is none of the above.
        """
        if split not in SPLITS:
            raise UserError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
        if min(shape, default=0) < SMALLEST:
            raise UserError(f"shape={shape}: give at least {SMALLEST} voxels along every axis.")
        self.size = size.get(split, 0) if isinstance(size, Mapping) else size
        self.split, self.seed, self.shape = split, seed, list(shape)
        self.anatomy, self.flow = anatomy or Shapes(), flow or Flow()
        self.contrast, self.alike, self.taught = contrast or Contrast(), alike, taught

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.size:
            raise IndexError(f"pair {index} of {self.size}")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        shape, anatomy = self.shape, self.anatomy(rng, self.shape)
        (there, _), (out, back) = self.flow(rng, shape), self.flow(rng, shape)
        x = ops.identity_grid(shape, there)
        sides = [anatomy(x + u) for u in (there, out)]
        looks = [self.contrast.look(rng, anatomy.labels) for _ in sides]
        looks = looks[:1] * 2 if rng.random() < self.alike else looks
        fixed, moving = (
            self.contrast(rng, look, *side) for look, side in zip(looks, sides, strict=True)
        )
        chosen = self.chosen(rng, sides[0][0], anatomy.labels)
        return Pair(
            fixed=fixed[0],
            moving=moving[0],
            fixed_labels=chosen[sides[0][0]][0],
            moving_labels=chosen[sides[1][0]][0],
            displacement=ops.compose(there, back)[0],
            spacing=torch.ones(len(shape)),
            name=f"generated-{self.split}-{index:06d}",  # type: ignore[typeddict-item]
        )

    def chosen(self, rng: np.random.Generator, labels: Tensor, most: int) -> Tensor:
        """Numbers from 1 of the labels that are taught, in a table by label; 0 are all others."""
        count = torch.bincount(labels.flatten())
        shown = count[1:].nonzero()[:, 0].numpy() + 1
        table = torch.zeros(most + 1, dtype=torch.int64)
        kept = rng.permutation(shown)[: self.taught]
        table[kept] = torch.arange(1, len(kept) + 1)
        return table
