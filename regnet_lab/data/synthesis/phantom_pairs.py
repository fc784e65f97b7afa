"""Synthetic pairs of phantoms with known displacement, labels and landmarks.

The moving image shows a random phantom a; the fixed image shows the deformed phantom a(x + u(x)),
where x + u(x) is the diffeomorphism of a smooth random velocity field. Each image has its own gain
field, contrast and noise.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.datasets.base import PairDataset
from regnet_lab.data.synthesis.phantom import (
    NUM_LAYERS,
    PhantomAnatomy,
    sample_normal,
    sample_smooth_noise,
)
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
MIN_SIZE = 16  # voxels along an axis
MAX_ATTEMPTS = 50

Rendering = tuple[Tensor, Tensor]  # image and labels, both (1, 1, *spatial)


def sample_diffeomorphism(
    rng: np.random.Generator, shape: Sequence[int], amplitude: float, smoothness: float
) -> Tensor:
    """Sample a diffeomorphism that maps the grid onto itself, from a stationary velocity field.

    The velocity is noise of width ``smoothness`` plus a quarter as much at 0.4 of that width. Its
    component k is multiplied by 1 - x_k^4, which is zero on the first and last plane of axis k, so
    that no point leaves the grid. It is integrated at half resolution
    (:func:`regnet_lab.ops.integrate`).

    Args:
        rng: Random generator.
        shape: Grid shape of the displacement.
        amplitude: Mean length of the velocity as a fraction of the field of view.
        smoothness: Standard deviation of the smoothing Gaussian, likewise.

    Returns:
        (1, D, *shape) displacement in voxels.
    """
    coarse = [max(n // 2, MIN_SIZE) for n in shape]
    noise = [sample_smooth_noise(rng, len(shape), smoothness * scale, coarse) for scale in (1, 0.4)]
    velocity = noise[0] + noise[1] / 4
    size = torch.tensor(coarse).view(1, -1, *[1] * len(shape))
    x = 2 * ops.identity_grid(coarse, velocity) / (size - 1) - 1
    velocity = velocity * (1 - x**4)
    velocity = velocity * amplitude / velocity.norm(dim=1).mean()
    return ops.resize_field(ops.integrate(velocity * size), shape)


def simulate_scanner(rng: np.random.Generator, image: Tensor, noise: float, bias: float) -> Tensor:
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


def sample_landmarks(rng: np.random.Generator, labels: Tensor, count: int) -> Tensor:
    """Sample (count, D) voxels of ``labels`` (1, 1, *spatial), equally often from each label."""
    inside = labels[0, 0].nonzero()
    label = labels[labels > 0]
    weight = (1 / label.bincount()[label]).double()
    indices = rng.choice(
        len(inside), count, replace=count > len(inside), p=(weight / weight.sum()).numpy()
    )
    return inside[torch.from_numpy(indices)].float()


class PhantomPairs(PairDataset):
    """Random phantoms under random diffeomorphisms, determined by (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape) from 1 to
    ``num_labels`` and 0 outside, each present in both images, landmarks (num_points, D) in voxels,
    fold-free displacement (D, *shape) in voxels, and spacing (D,), 1 mm.
    """

    def __init__(
        self,
        split: str,
        ndim: int,
        shape: int | Sequence[int] = 64,
        num_pairs: int = 64,
        seed: int = 0,
        amplitude: float = 0.04,
        smoothness: float = 0.17,
        num_labels: int = 8,
        num_points: int = 64,
        noise: float = 0.03,
        bias_field: float = 0.12,
        cache_gigabytes: float = 0.5,
    ) -> None:
        """Set up the data set; pairs are generated on access.

        Args:
            split: ``train``, ``val`` or ``test``; splits have no pairs in common.
            ndim: Number of dimensions, 2 or 3.
            shape: Number of voxels along all axes, or one number per axis.
            num_pairs: Number of pairs in this split.
            seed: Random seed.
            amplitude: Size of the deformation (:func:`sample_diffeomorphism`).
            smoothness: Smoothness of the deformation, likewise.
            num_labels: Number of structures: four layers and at least one organ.
            num_points: Number of landmarks.
            noise: Standard deviation of the image noise.
            bias_field: Standard deviation of log gain and log gamma.
            cache_gigabytes: Memory in which generated pairs are kept.

        Raises:
            UserError: A value is invalid.
        """
        shape = [shape] * ndim if isinstance(shape, int) else list(shape)
        _check_parameters(split, ndim, shape, seed, num_labels)
        self.split, self.shape, self.num_pairs, self.seed = split, shape, num_pairs, seed
        self.amplitude, self.smoothness = amplitude, smoothness
        self.num_labels, self.num_points = num_labels, num_points
        self.noise, self.bias_field = noise, bias_field
        self._cache_capacity = int(cache_gigabytes * 1e9 / ((24 + 4 * ndim) * np.prod(shape)))
        self._cache: dict[int, Pair] = {}

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.num_pairs:
            raise IndexError(f"index {index} is out of range for {self.num_pairs} pairs")
        pair = self._cache.get(index) or self._make_pair(index)
        if len(self._cache) < self._cache_capacity:
            self._cache[index] = pair
        return pair.copy()

    def _make_pair(self, index: int) -> Pair:
        """Generate pair ``index``."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
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
            "spacing": torch.ones(1, len(self.shape)),
        }
        pair: dict[str, object] = {key: value[0] for key, value in batch.items()}
        return cast(Pair, pair | {"name": f"synthetic-{self.split}-{index:04d}"})

    def _sample_renderings(self, rng: np.random.Generator) -> tuple[Rendering, Rendering, Tensor]:
        """Sample fixed and moving renderings and their displacement; repeat invalid draws."""
        for _ in range(MAX_ATTEMPTS):
            anatomy = PhantomAnatomy(rng, self.shape, self.num_labels)
            u = sample_diffeomorphism(rng, self.shape, self.amplitude, self.smoothness)
            x = ops.identity_grid(self.shape, u)
            fixed, moving = anatomy(x + u), anatomy(x)
            complete = all(label.unique().numel() > self.num_labels for _, label in (fixed, moving))
            if complete and _is_fold_free(u):
                return fixed, moving, u
        raise UserError(
            f"{MAX_ATTEMPTS} draws gave no pair of shape {self.shape} with "
            f"num_labels={self.num_labels} and amplitude={self.amplitude} that shows every label "
            "and has no folds: enlarge shape, or reduce num_labels or amplitude."
        )


def _is_fold_free(u: Tensor) -> bool:
    """Return whether the Jacobian determinant is positive with either scheme."""
    return all(
        bool((ops.jacobian_determinant(u, scheme) > 0).all()) for scheme in ("central", "forward")
    )


def _check_parameters(
    split: str, ndim: int, shape: Sequence[int], seed: int, num_labels: int
) -> None:
    """Raise a UserError for the first invalid parameter."""
    rules = {
        f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.": split in SPLITS,
        f"ndim={ndim} is not supported: choose 2 or 3.": ndim in (2, 3),
        f"shape={shape} has {len(shape)} numbers for ndim={ndim}: "
        "give one per dimension or a single one for all.": len(shape) == ndim,
        f"shape={shape} is too small for a phantom: "
        f"give at least {MIN_SIZE} voxels along every axis.": min(shape, default=0) >= MIN_SIZE,
        f"seed={seed} is negative: choose 0 or above.": seed >= 0,
        f"num_labels={num_labels} is too small: choose at least {NUM_LAYERS + 1}.": num_labels
        > NUM_LAYERS,
    }
    for message, valid in rules.items():
        if not valid:
            raise UserError(message)
