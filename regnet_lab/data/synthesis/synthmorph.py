"""Synthetic pairs with random shapes and contrasts, for training contrast-invariant networks.

A random anatomy a is rendered twice, fixed(x) = a(F(x)) and moving(x) = a(M(x)), with independent
diffeomorphisms F and M and independent image contrasts; M^-1 o F is the known transformation.
After Hoffmann et al., SynthMorph, IEEE TMI 2022 (arXiv 2004.10282).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.datasets.base import GeneratedPairs
from regnet_lab.data.synthesis.phantom import sample_smooth_noise, sample_uniform
from regnet_lab.data.synthesis.phantom_pairs import MIN_SIZE
from regnet_lab.data.synthesis.synthmorph_images import RandomContrast
from regnet_lab.data.synthesis.synthmorph_labels import RandomShapes, Range, sample_in_range
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

VELOCITY_SPACING = 3  # image voxels per voxel of the velocity field


@dataclass(frozen=True)
class RandomDiffeomorphism:
    """Random diffeomorphisms x -> A exp(v)(x) with inverses exp(-v) o A^-1, each (1, D, *shape).

    v is smooth noise of two widths; A = exp(G) acts about the grid's center, followed by a
    translation t. Velocities of several scales follow SynthMorph; the ranges are our own. Two such
    maps differ about as much as two subjects after affine registration: at 48 x 64 x 48 by 4 voxels
    on average, 12 at most.
    """

    # range of the mean length of v, as a fraction of the field of view
    amplitude: Range = (0.0, 0.05)
    smoothness: Range = (0.05, 0.3)  # range of the noise widths, likewise; sampled log-uniformly
    affine_std: float = 0.04  # standard deviation of the elements of G (rotation, scale and shear)
    max_translation: float = 0.03  # largest t along each axis, as a fraction of its length

    def sample_velocity(self, rng: Generator, shape: Sequence[int]) -> Tensor:
        """Sample a velocity field (1, D, *coarse) in voxels of its own grid."""
        coarse = [max(n // VELOCITY_SPACING, 8) for n in shape]
        low, high = np.log(self.smoothness)
        widths = np.exp(rng.uniform(low, high, 2))
        weight = rng.random()
        noise = [sample_smooth_noise(rng, len(shape), float(w), coarse) for w in widths]
        v = weight * noise[0] + (1 - weight) * noise[1]
        size = math.prod(coarse) ** (1 / len(coarse))
        return v * (sample_in_range(rng, self.amplitude) * size / v.square().sum(1).sqrt().mean())

    def sample_matrix(self, rng: Generator, shape: Sequence[int]) -> Tensor:
        """Sample the (D+1, D+1) matrix of the affine part, in voxels."""
        ndim = len(shape)
        generator = self.affine_std * torch.from_numpy(rng.standard_normal((ndim, ndim))).float()
        shift = self.max_translation * sample_uniform(rng, ndim) * torch.tensor(shape)
        center = (torch.tensor(shape) - 1) / 2
        matrix = torch.eye(ndim + 1)
        matrix[:-1, :-1] = torch.matrix_exp(generator)
        matrix[:-1, -1] = center + shift - matrix[:-1, :-1] @ center
        return matrix

    def __call__(self, rng: Generator, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        v, matrix = self.sample_velocity(rng, shape), self.sample_matrix(rng, shape)
        forward, inverse = (ops.resize_field(ops.integrate(w, 5), shape) for w in (v, -v))
        x = ops.identity_grid(shape, v)
        mapped = ops.transform_points(matrix, (x + forward)[0].flatten(1).T).T.view(x.shape)
        inverse_affine = ops.affine_field(torch.linalg.inv(matrix)[None], shape)
        return mapped - x, ops.compose(inverse_affine, inverse)


@dataclass(eq=False, repr=False)
class SynthMorphPairs(GeneratedPairs):
    """Random pairs of synthetic images, determined by (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape) with 0 for
    background and unselected labels, displacement (D, *shape) in voxels and spacing (D,), 1 mm.
    """

    split: str  # ``train``, ``val`` or ``test``; splits have no pairs in common
    shape: Sequence[int]
    num_pairs: int | Mapping[str, int] = 1000  # number of pairs, for all splits or by split
    seed: int = 0
    # samples the anatomy; None: :class:`RandomShapes` with its defaults
    anatomy: RandomShapes | None = None
    deformation: RandomDiffeomorphism | None = None  # samples the two diffeomorphisms, likewise
    contrast: RandomContrast | None = None  # samples the two image contrasts, likewise
    # probability that both images have the same intensities and textures per label; artifacts
    # remain independent
    same_contrast_probability: float = 0.25
    # largest number of labels per pair, sampled among those visible; the cost of soft Dice grows
    # with it
    max_labels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.shape, default=0) < MIN_SIZE:
            raise UserError(
                f"shape={self.shape}: give at least {MIN_SIZE} voxels along every axis."
            )

    def make_pair(self, index: int) -> Pair:
        rng, shape = self.make_rng(index), self.shape
        contrast = self.contrast or RandomContrast()
        deformation = self.deformation or RandomDiffeomorphism()
        anatomy = (self.anatomy or RandomShapes())(rng, shape)
        (u_fixed, _), (u_moving, inverse) = (deformation(rng, shape) for _ in range(2))
        x = ops.identity_grid(shape, u_fixed)
        renderings = [anatomy(x + u) for u in (u_fixed, u_moving)]
        appearances = [contrast.sample_appearance(rng, anatomy.num_labels) for _ in renderings]
        if rng.random() < self.same_contrast_probability:
            appearances = appearances[:1] * 2
        fixed, moving = (
            contrast(rng, appearance, *rendering)
            for appearance, rendering in zip(appearances, renderings, strict=True)
        )
        (fixed_labels, _), (moving_labels, _) = renderings
        table = self._sample_label_table(rng, fixed_labels, anatomy.num_labels)
        return {
            "fixed": fixed[0],
            "moving": moving[0],
            "fixed_labels": table[fixed_labels][0],
            "moving_labels": table[moving_labels][0],
            "displacement": ops.compose(u_fixed, inverse)[0],
            "spacing": torch.ones(len(shape)),
            "name": cast(Any, f"generated-{self.split}-{index:06d}"),
        }

    def _sample_label_table(self, rng: Generator, labels: Tensor, num_labels: int) -> Tensor:
        """Sample a lookup table that numbers the selected labels from 1 and maps others to 0."""
        count = torch.bincount(labels.flatten())
        visible = count[1:].nonzero()[:, 0].numpy() + 1
        table = torch.zeros(num_labels + 1, dtype=torch.int64)
        selected = rng.permutation(visible)[: self.max_labels]
        table[selected] = torch.arange(1, len(selected) + 1)
        return table
