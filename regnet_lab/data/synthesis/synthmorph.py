"""Synthetic pairs with random shapes and contrasts, for training contrast-invariant networks.

A random anatomy a is rendered twice, fixed(x) = a(F(x)) and moving(x) = a(M(x)), with independent
diffeomorphisms F and M and independent image contrasts; M^-1 o F is the known transformation.
After Hoffmann et al., SynthMorph, IEEE TMI 2022 (arXiv 2004.10282).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.datasets.base import PairDataset
from regnet_lab.data.synthesis.phantom import sample_smooth_noise, sample_uniform
from regnet_lab.data.synthesis.synthmorph_images import RandomContrast
from regnet_lab.data.synthesis.synthmorph_labels import RandomShapes, Range, sample_in_range
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
MIN_SIZE = 16  # voxels along an axis
VELOCITY_SPACING = 3  # image voxels per voxel of the velocity field

FieldAndInverse = tuple[Tensor, Tensor]  # displacements (1, D, *shape)


@dataclass(frozen=True)
class RandomDiffeomorphism:
    """Random diffeomorphisms x -> A exp(v)(x) with their inverses exp(-v) o A^-1.

    v is smooth noise of two widths; A = exp(G) acts about the grid's center, followed by a
    translation t. Velocities of several scales follow SynthMorph; the ranges are our own. Two such
    maps differ about as much as two subjects after affine registration: at 48 x 64 x 48 by 4 voxels
    on average, 12 at most.

    Args:
        amplitude: Range of the mean length of v, as a fraction of the field of view.
        smoothness: Range of the noise widths, likewise; sampled log-uniformly.
        affine_std: Standard deviation of the elements of G (rotation, scale and shear).
        max_translation: Largest t along each axis, as a fraction of its length.
    """

    amplitude: Range = (0.0, 0.05)
    smoothness: Range = (0.05, 0.3)
    affine_std: float = 0.04
    max_translation: float = 0.03

    def sample_velocity(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """Sample a velocity field (1, D, *coarse) in voxels of its own grid."""
        coarse = [max(n // VELOCITY_SPACING, 8) for n in shape]
        low, high = np.log(self.smoothness)
        widths = np.exp(rng.uniform(low, high, 2))
        weight = rng.random()
        noise = [sample_smooth_noise(rng, len(shape), float(w), coarse) for w in widths]
        v = weight * noise[0] + (1 - weight) * noise[1]
        size = math.prod(coarse) ** (1 / len(coarse))
        return v * (sample_in_range(rng, self.amplitude) * size / v.square().sum(1).sqrt().mean())

    def sample_matrix(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """Sample the (D+1, D+1) matrix of the affine part, in voxels."""
        ndim = len(shape)
        generator = self.affine_std * torch.from_numpy(rng.standard_normal((ndim, ndim))).float()
        shift = self.max_translation * sample_uniform(rng, ndim) * torch.tensor(shape)
        center = (torch.tensor(shape) - 1) / 2
        matrix = torch.eye(ndim + 1)
        matrix[:-1, :-1] = torch.matrix_exp(generator)
        matrix[:-1, -1] = center + shift - matrix[:-1, :-1] @ center
        return matrix

    def __call__(self, rng: np.random.Generator, shape: Sequence[int]) -> FieldAndInverse:
        v, matrix = self.sample_velocity(rng, shape), self.sample_matrix(rng, shape)
        forward, inverse = (ops.resize_field(ops.integrate(w, 5), shape) for w in (v, -v))
        x = ops.identity_grid(shape, v)
        mapped = ops.transform_points(matrix, (x + forward)[0].flatten(1).T).T.view(x.shape)
        inverse_affine = ops.affine_field(torch.linalg.inv(matrix)[None], shape)
        return mapped - x, ops.compose(inverse_affine, inverse)


class SynthMorphPairs(PairDataset):
    """Random pairs of synthetic images, determined by (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape) with 0 for
    background and unselected labels, displacement (D, *shape) in voxels and spacing (D,), 1 mm.
    """

    def __init__(
        self,
        split: str,
        shape: Sequence[int],
        num_pairs: int | Mapping[str, int] = 1000,
        seed: int = 0,
        anatomy: RandomShapes | None = None,
        deformation: RandomDiffeomorphism | None = None,
        contrast: RandomContrast | None = None,
        same_contrast_probability: float = 0.25,
        max_labels: int = 8,
    ) -> None:
        """Set up the data set; pairs are generated on access.

        Args:
            split: ``train``, ``val`` or ``test``; splits have no pairs in common.
            shape: Grid shape.
            num_pairs: Number of pairs, for all splits or by split.
            seed: Random seed.
            anatomy: Samples the anatomy.
            deformation: Samples the two diffeomorphisms.
            contrast: Samples the two image contrasts.
            same_contrast_probability: Probability that both images have the same intensities and
                textures per label; artifacts remain independent.
            max_labels: Largest number of labels per pair, sampled among those visible; the cost of
                soft Dice grows with it.

        Raises:
            UserError: The split is unknown or the shape too small.
        """
        if split not in SPLITS:
            raise UserError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
        if min(shape, default=0) < MIN_SIZE:
            raise UserError(f"shape={shape}: give at least {MIN_SIZE} voxels along every axis.")
        self.num_pairs = num_pairs.get(split, 0) if isinstance(num_pairs, Mapping) else num_pairs
        self.split, self.seed, self.shape = split, seed, list(shape)
        self.anatomy = anatomy or RandomShapes()
        self.deformation = deformation or RandomDiffeomorphism()
        self.contrast = contrast or RandomContrast()
        self.same_contrast_probability, self.max_labels = same_contrast_probability, max_labels

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.num_pairs:
            raise IndexError(f"index {index} is out of range for {self.num_pairs} pairs")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        shape, anatomy = self.shape, self.anatomy(rng, self.shape)
        (u_fixed, _), (u_moving, inverse) = (
            self.deformation(rng, shape),
            self.deformation(rng, shape),
        )
        x = ops.identity_grid(shape, u_fixed)
        renderings = [anatomy(x + u) for u in (u_fixed, u_moving)]
        appearances = [self.contrast.sample_appearance(rng, anatomy.num_labels) for _ in renderings]
        if rng.random() < self.same_contrast_probability:
            appearances = appearances[:1] * 2
        fixed, moving = (
            self.contrast(rng, appearance, *rendering)
            for appearance, rendering in zip(appearances, renderings, strict=True)
        )
        (fixed_labels, _), (moving_labels, _) = renderings
        table = self._sample_label_table(rng, fixed_labels, anatomy.num_labels)
        pair = {
            "fixed": fixed[0],
            "moving": moving[0],
            "fixed_labels": table[fixed_labels][0],
            "moving_labels": table[moving_labels][0],
            "displacement": ops.compose(u_fixed, inverse)[0],
            "spacing": torch.ones(len(shape)),
            "name": f"generated-{self.split}-{index:06d}",
        }
        return cast(Pair, pair)

    def _sample_label_table(
        self, rng: np.random.Generator, labels: Tensor, num_labels: int
    ) -> Tensor:
        """Sample a lookup table that numbers the selected labels from 1 and maps others to 0."""
        count = torch.bincount(labels.flatten())
        visible = count[1:].nonzero()[:, 0].numpy() + 1
        table = torch.zeros(num_labels + 1, dtype=torch.int64)
        selected = rng.permutation(visible)[: self.max_labels]
        table[selected] = torch.arange(1, len(selected) + 1)
        return table
