"""Pairs made in memory, whose displacement, labels and landmarks are known exactly.

The moving image shows a random anatomy a; the fixed image shows the same anatomy deformed,
a(x + u(x)), where u is the flow of a smooth random velocity and hence a diffeomorphism.  Each is
then seen by a scanner of its own, with its own gain field, contrast and noise.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import LAYERS, Anatomy, normal, smooth_noise
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
SMALLEST = 16  # voxels along an axis
ATTEMPTS = 50

Rendering = tuple[Tensor, Tensor]  # image and labels, both (1, 1, *spatial)


def diffeomorphism(
    rng: np.random.Generator, shape: Sequence[int], amplitude: float, smoothness: float
) -> Tensor:
    """Random displacement of the grid's box onto itself: the flow of a smooth stationary velocity.

    The velocity is noise of width ``smoothness`` plus a quarter as much at 0.4 of that width; its
    component k is multiplied by 1 - x_k^4, zero on the grid's first and last planes of axis k, so
    that nothing leaves the grid.  It is integrated on half the grid
    (:func:`regnet_lab.ops.integrate`).

    Args:
        rng: Source of the velocity.
        shape: Grid of the displacement.
        amplitude: Mean length of the velocity as a fraction of the field of view.
        smoothness: Standard deviation of the Gaussian that smooths it, as such a fraction.

    Returns:
        (1, D, *shape) displacement in voxels.
    """
    coarse = [max(n // 2, SMALLEST) for n in shape]
    noise = [smooth_noise(rng, len(shape), smoothness * scale, coarse) for scale in (1, 0.4)]
    velocity = noise[0] + noise[1] / 4
    size = torch.tensor(coarse).view(1, -1, *[1] * len(shape))
    x = 2 * ops.identity_grid(coarse, velocity) / (size - 1) - 1
    velocity = velocity * (1 - x**4)
    velocity = velocity * amplitude / velocity.norm(dim=1).mean()
    return ops.resize_field(ops.integrate(velocity * size), shape)


def scanned(rng: np.random.Generator, image: Tensor, noise: float, bias: float) -> Tensor:
    """What a scanner makes of an image (1, 1, *spatial) in [0, 1].

    |image^gamma exp(bias b) + noise (n1 + i n2)|, clipped to [0, 1]: a gain field of smooth unit
    noise b, gamma = exp(bias n3) and Rician noise; n1, n2, n3 are standard normal.
    """
    lattice = smooth_noise(rng, 1, 0.25, [SMALLEST] * (image.ndim - 2))
    gain = bias * ops.resize(lattice, image.shape[2:])
    gamma = np.exp(bias * rng.standard_normal())
    signal = image.clamp(0, 1) ** gamma * gain.exp()
    real, imaginary = noise * normal(rng, (2, *image.shape))
    return torch.hypot(signal + real, imaginary).clamp(0, 1)


def landmarks(rng: np.random.Generator, labels: Tensor, count: int) -> Tensor:
    """(count, D) voxels of structures in ``labels`` (1, 1, *spatial), all structures alike."""
    inside = labels[0, 0].nonzero()
    label = labels[labels > 0]
    weight = (1 / label.bincount()[label]).double()
    chosen = rng.choice(
        len(inside), count, replace=count > len(inside), p=(weight / weight.sum()).numpy()
    )
    return inside[torch.from_numpy(chosen)].float()


class Synthetic(Dataset[Pair]):
    """Random anatomies under random diffeomorphisms; a case follows from (seed, split, index).

    An item is an unbatched pair: images (1, *shape) in [0, 1], labels (1, *shape) from 1 to
    ``labels`` and 0 outside, all of them in both images, landmarks (points, D) in voxels,
    displacement (D, *shape) in voxels without folds, and spacing (D,), 1 mm.
    """

    def __init__(
        self,
        split: str,
        ndim: int,
        shape: int | Sequence[int] = 64,
        size: int = 64,
        seed: int = 0,
        amplitude: float = 0.04,
        smoothness: float = 0.17,
        labels: int = 8,
        points: int = 64,
        noise: float = 0.03,
        bias: float = 0.12,
        memory: float = 0.5,
    ) -> None:
        """Describe the cases; none is made before it is asked for.

        Args:
            split: ``train``, ``val`` or ``test``; they share no case.
            ndim: Number of dimensions, 2 or 3.
            shape: Voxels along every axis, or a list of one number for each.
            size: Number of cases in this split.
            seed: Another seed, other cases.
            amplitude: Size of the deformation (:func:`diffeomorphism`).
            smoothness: Its smoothness.
            labels: Number of structures: four layers and one organ at least.
            points: Number of landmarks.
            noise: Standard deviation of the scanner's noise.
            bias: Standard deviation of its log gain and log gamma.
            memory: Gigabytes of cases that are kept once made.

        Raises:
            UserError: A value is none of the above.
        """
        shape = [shape] * ndim if isinstance(shape, int) else list(shape)
        _check(split, ndim, shape, seed, labels)
        self.split, self.shape, self.size, self.seed = split, shape, size, seed
        self.amplitude, self.smoothness = amplitude, smoothness
        self.labels, self.points, self.noise, self.bias = labels, points, noise, bias
        self._room = int(memory * 1e9 / ((24 + 4 * ndim) * np.prod(shape)))
        self._kept: dict[int, Pair] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.size:
            raise IndexError(f"case {index} of {self.size}")
        pair = self._kept.get(index) or self._made(index)
        if len(self._kept) < self._room:
            self._kept[index] = pair
        return pair.copy()

    def _made(self, index: int) -> Pair:
        """The case ``index``."""
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        (fixed, fixed_labels), (moving, moving_labels), u = self._drawn(rng)
        points = landmarks(rng, fixed_labels, self.points)[None]
        pair = Pair(
            fixed=scanned(rng, fixed, self.noise, self.bias),
            moving=scanned(rng, moving, self.noise, self.bias),
            fixed_labels=fixed_labels,
            moving_labels=moving_labels,
            fixed_points=points,
            moving_points=points + ops.sample_at(u, points),
            displacement=u,
            spacing=torch.ones(1, len(self.shape)),
            name=[f"synthetic-{self.split}-{index:04d}"],
        )
        return Pair(**{key: value[0] for key, value in pair.items()})  # type: ignore

    def _drawn(self, rng: np.random.Generator) -> tuple[Rendering, Rendering, Tensor]:
        """Fixed and moving anatomy and what leads from one to the other; seldom a second draw."""
        for _ in range(ATTEMPTS):
            anatomy = Anatomy(rng, self.shape, self.labels)
            u = diffeomorphism(rng, self.shape, self.amplitude, self.smoothness)
            x = ops.identity_grid(self.shape, u)
            fixed, moving = anatomy(x + u), anatomy(x)
            shown = all(label.unique().numel() > self.labels for _, label in (fixed, moving))
            if shown and _unfolded(u):
                return fixed, moving, u
        raise UserError(
            f"{ATTEMPTS} draws gave no case of shape {self.shape} with labels={self.labels} and "
            f"amplitude={self.amplitude} that shows every label and has no folds: "
            "enlarge shape, or lower labels or amplitude."
        )


def _unfolded(u: Tensor) -> bool:
    """Whether the Jacobian determinant is positive by either scheme."""
    return all(
        bool((ops.jacobian_determinant(u, scheme) > 0).all()) for scheme in ("central", "forward")
    )


def _check(split: str, ndim: int, shape: Sequence[int], seed: int, labels: int) -> None:
    """Raises UserError for the first value that describes no data set."""
    rules = {
        f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.": split in SPLITS,
        f"ndim={ndim} is not possible: choose 2 or 3.": ndim in (2, 3),
        f"shape={shape} has {len(shape)} numbers for ndim={ndim}: "
        "give one for each dimension or a single one for all.": len(shape) == ndim,
        f"shape={shape} is too small for an anatomy: "
        f"give at least {SMALLEST} voxels along every axis.": min(shape, default=0) >= SMALLEST,
        f"seed={seed} is negative: choose 0 or above.": seed >= 0,
        f"labels={labels} is too few: ask for at least {LAYERS + 1}.": labels > LAYERS,
    }
    for sentence, holds in rules.items():
        if not holds:
            raise UserError(sentence)
