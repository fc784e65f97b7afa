"""Synthetic pairs of phantoms with known displacement, labels and landmarks.

The moving image shows a random phantom a; the fixed image shows the deformed phantom a(x + u(x)),
where x + u(x) is the diffeomorphism of a smooth random velocity field. Each image has its own gain
field, contrast and noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.datasets.base import GeneratedPairs
from regnet_lab.data.displacement_classes import expand_per_axis
from regnet_lab.data.synthesis.phantom import (
    NUM_LAYERS,
    PhantomAnatomy,
    sample_normal,
    sample_smooth_noise,
)
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

MIN_SIZE = 16  # voxels along an axis
MAX_ATTEMPTS = 50
SCHEMES = ("central", "forward")  # of the Jacobian determinant, positive with either

Rendering = tuple[Tensor, Tensor]  # image and labels, both (1, 1, *spatial)


def sample_diffeomorphism(
    rng: Generator, shape: Sequence[int], amplitude: float, smoothness: float
) -> Tensor:
    """Sample a diffeomorphism that maps the grid onto itself, from a stationary velocity field.

    The velocity is noise of width ``smoothness`` plus a quarter as much at 0.4 of that width. Its
    component k is multiplied by 1 - x_k^4, which is zero on the first and last plane of axis k, so
    that no point leaves the grid. It is integrated at half resolution
    (:func:`regnet_lab.ops.integrate`).

    Args:
        rng: Source of random numbers.
        shape: Grid shape of the displacement (1, D, *shape), in voxels.
        amplitude: Mean length of the velocity as a fraction of the field of view.
        smoothness: Standard deviation of the smoothing Gaussian, likewise.
    """
    coarse = [max(n // 2, MIN_SIZE) for n in shape]
    noise = [sample_smooth_noise(rng, len(shape), smoothness * scale, coarse) for scale in (1, 0.4)]
    velocity = noise[0] + noise[1] / 4
    size = torch.tensor(coarse).view(1, -1, *[1] * len(shape))
    x = 2 * ops.identity_grid(coarse, velocity) / (size - 1) - 1
    velocity = velocity * (1 - x**4)
    velocity = velocity * amplitude / velocity.norm(dim=1).mean()
    return ops.resize_field(ops.integrate(velocity * size), shape)


def simulate_scanner(rng: Generator, image: Tensor, noise: float, bias: float) -> Tensor:
    """Simulate gain field, contrast and Rician noise of an image (1, 1, *spatial) in [0, 1].

    The result is |image^gamma exp(bias b) + noise (n1 + i n2)|, clipped to [0, 1], with smooth unit
    noise b, gamma = exp(bias n3) and standard normal n1, n2, n3.
    """
    lattice = sample_smooth_noise(rng, 1, 0.25, [MIN_SIZE] * (image.ndim - 2))
    gain = bias * ops.resize(lattice, image.shape[2:])
    gamma = np.exp(bias * rng.standard_normal())
    signal = image.clamp(0, 1) ** gamma * gain.exp()
    real, imaginary = noise * sample_normal(rng, (2, *image.shape))
    return torch.hypot(signal + real, imaginary).clamp(0, 1)


def sample_landmarks(rng: Generator, labels: Tensor, count: int) -> Tensor:
    """Sample (count, D) voxels of ``labels`` (1, 1, *spatial), equally often from each label."""
    inside = labels[0, 0].nonzero()
    label = labels[labels > 0]
    weight = (1 / label.bincount()[label]).double()
    p = (weight / weight.sum()).numpy()
    indices = rng.choice(len(inside), count, replace=count > len(inside), p=p)
    return inside[torch.from_numpy(indices)].float()


@dataclass(eq=False, repr=False)
class PhantomPairs(GeneratedPairs):
    """Random phantoms under random diffeomorphisms, determined by (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape) from 1 to
    ``num_labels`` and 0 outside, each present in both images, landmarks (num_points, D) in voxels,
    fold-free displacement (D, *shape) in voxels, and spacing (D,), 1 mm.
    """

    split: str  # ``train``, ``val`` or ``test``; splits have no pairs in common
    ndim: int  # number of dimensions, 2 or 3
    shape: int | Sequence[int] = 64  # number of voxels along all axes, or one number per axis
    num_pairs: int | Mapping[str, int] = 64  # number of pairs, for all splits or by split
    seed: int = 0
    amplitude: float = 0.04  # size of the deformation (:func:`sample_diffeomorphism`)
    smoothness: float = 0.17  # smoothness of the deformation, likewise
    num_labels: int = 8  # number of structures: four layers and at least one organ
    num_points: int = 64
    noise: float = 0.03  # standard deviation of the image noise
    bias_field: float = 0.12  # standard deviation of log gain and log gamma
    cache_gigabytes: float = 0.5  # memory in which generated pairs are kept

    def __post_init__(self) -> None:
        super().__post_init__()
        ndim, seed, num_labels, least = self.ndim, self.seed, self.num_labels, NUM_LAYERS + 1
        self.grid = grid = list(expand_per_axis(self.shape, ndim))
        rules = {
            f"ndim={ndim} is not supported: choose 2 or 3.": ndim in (2, 3),
            f"shape={grid} has {len(grid)} numbers for ndim={ndim}: "
            "give one per dimension or a single one for all.": len(grid) == ndim,
            f"shape={grid} is too small for a phantom: "
            f"give at least {MIN_SIZE} voxels along every axis.": min(grid, default=0) >= MIN_SIZE,
            f"seed={seed} is negative: choose 0 or above.": seed >= 0,
            f"num_labels={num_labels} is too small: choose at least {least}.": num_labels >= least,
        }
        if violated := [message for message, valid in rules.items() if not valid]:
            raise UserError(violated[0])
        self._cache_capacity = int(self.cache_gigabytes * 1e9 / ((24 + 4 * ndim) * np.prod(grid)))
        self._cache: dict[int, Pair] = {}

    def make_pair(self, index: int) -> Pair:
        pair = self._cache.get(index) or self._generate_pair(index)
        if len(self._cache) < self._cache_capacity:
            self._cache[index] = pair
        return pair.copy()

    def _generate_pair(self, index: int) -> Pair:
        rng = self.make_rng(index)
        (fixed, fixed_labels), (moving, moving_labels), u = self._sample_renderings(rng)
        points = sample_landmarks(rng, fixed_labels, self.num_points)[None]
        batch = {
            "fixed": simulate_scanner(rng, fixed, self.noise, self.bias_field),
            "moving": simulate_scanner(rng, moving, self.noise, self.bias_field),
            "fixed_labels": fixed_labels,
            "moving_labels": moving_labels,
            "fixed_points": points,
            "moving_points": points + ops.sample_at(u, points),
            "displacement": u,
            "spacing": torch.ones(1, len(self.grid)),
        }
        pair: dict[str, object] = {key: value[0] for key, value in batch.items()}
        return cast(Pair, pair | {"name": f"synthetic-{self.split}-{index:04d}"})

    def _sample_renderings(self, rng: Generator) -> tuple[Rendering, Rendering, Tensor]:
        """Sample fixed and moving renderings and their displacement; repeat invalid draws."""
        for _ in range(MAX_ATTEMPTS):
            anatomy = PhantomAnatomy(rng, self.grid, self.num_labels)
            u = sample_diffeomorphism(rng, self.grid, self.amplitude, self.smoothness)
            x = ops.identity_grid(self.grid, u)
            fixed, moving = anatomy(x + u), anatomy(x)
            complete = all(label.unique().numel() > self.num_labels for _, label in (fixed, moving))
            determinants = (ops.jacobian_determinant(u, scheme) for scheme in SCHEMES)
            if complete and all(bool((det > 0).all()) for det in determinants):
                return fixed, moving, u
        raise UserError(
            f"{MAX_ATTEMPTS} draws gave no pair of shape {self.grid} with "
            f"num_labels={self.num_labels} and amplitude={self.amplitude} that shows every label "
            "and has no folds: enlarge shape, or reduce num_labels or amplitude."
        )
