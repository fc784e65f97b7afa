"""RegNet's artificial displacement fields, version 0.1 (Sokooti et al., MICCAI 2017).

Random vectors on random voxels, the peaks, are spread by a Gaussian and brought back to the size
they had.  Settings are in millimetres, as published for images of 1 mm; fields come in voxels.

The generators are :class:`regnet_lab.data.synthesis.displacements.base.FieldGenerator`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import gaussian
from regnet_lab.errors import UserError

TRUNCATE = 4.0  # standard deviations at which the Gaussian ends
FEWEST = 4  # free voxels at which no further peak is placed
STILL = 2  # peaks without displacement


@lru_cache(64)
def blur_matrix(n: int, sigma: float) -> Tensor:
    """(n, n) Gaussian smoothing of an axis of n voxels, ``sigma`` in voxels, float32.

    The Gaussian ends at 4 sigma and the axis is mirrored about its outer faces (d c b a | a b c d
    | d c b a), however often: the matrix of scipy.ndimage.gaussian_filter1d(mode="reflect").
    """
    radius = int(TRUNCATE * sigma + 0.5)
    repeats = math.ceil((radius + n) / (2 * n))
    i = torch.arange(n)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for period in range(-repeats, repeats + 1):
        for image in (i, -1 - i):  # the axis and its mirror image
            matrix += gaussian(i[:, None] - image - 2 * n * period, sigma, radius)
    return matrix.float()


def spread(places: Tensor, vectors: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """:func:`regnet_lab.data.synthesis.displacements.base.separable` of an image that is zero but for P voxels, at a
    fraction of its cost.

    f_c(x) = sum_p v_pc prod_k M_k[x_k, places_pk].

    Args:
        places: (P, D) voxels, all different.
        vectors: (P, C) values there.
        matrices: Of each axis, (n_k, n_k).

    Returns:
        (C, *n).
    """
    *first, last = [m[:, along] for m, along in zip(matrices, places.T, strict=True)]  # (n_k, P)
    product = vectors.T
    for column in first:
        product = product.unsqueeze(-2) * column  # (C, n_0, ..., n_k, P)
    return product @ last.T


def renormalised(blurred: Tensor, places: Tensor, impulses: Tensor) -> Tensor:
    """Stretch a blurred component so that it reaches as far as its impulses did.

    Positive values go linearly from [least, greatest] to [0, greatest impulse], negative ones from
    [lowest, 0] to [lowest impulse at a voxel whose blurred value is negative, 0].

    Args:
        blurred: (*shape).
        places: (P, D) voxels of the impulses.
        impulses: (P,).
    """
    positive = blurred > 0
    negative_there = blurred[tuple(places.T)] < 0
    lowest, greatest = blurred.aminmax()
    if positive.any():
        least = torch.where(positive, blurred, torch.inf).min()
        rise = impulses.max().clamp(min=0) / (greatest - least).clamp(min=1e-30)
        upper = (blurred - least) * rise
    else:
        upper = blurred
    depth = torch.where(negative_there, impulses, 0.0).min()
    return torch.where(positive, upper, blurred * (depth / lowest.clamp(max=-1e-30)))


def spaced_places(
    rng: np.random.Generator, shape: Sequence[int], distance: Sequence[int], count: int
) -> NDArray[np.int64]:
    """(P, D) random voxels, any two of which are further apart than ``distance`` along one axis.

    Each is drawn from those left free by the others, until there are ``count`` or hardly any is
    left.
    """
    free = np.ones(tuple(shape), bool)
    rows = free.reshape(len(free), -1)
    left = rows.sum(1)  # in each plane of the first axis
    places: list[tuple[int, ...]] = []
    while len(places) < count and left.sum() > FEWEST:
        plane = rng.choice(len(left), p=left / left.sum())
        within = rng.choice(np.flatnonzero(rows[plane]))
        place = (int(plane), *(int(k) for k in np.unravel_index(within, free.shape[1:])))
        box = tuple(slice(max(x - d, 0), x + d + 1) for x, d in zip(place, distance, strict=True))
        left[box[0]] -= free[box].reshape(len(free[box]), -1).sum(1)
        free[box] = False
        places.append(place)
    return np.array(places, np.int64).reshape(-1, len(shape))


@dataclass(frozen=True)
class Peaks:
    """Places (P, D) in voxels and displacements (P, D) in millimetres."""

    places: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True)
class PeakField:
    """What the three frequencies have in common.

    Args:
        max_deform: Largest component of a peak, mm: each is drawn from U(-max_deform, max_deform).
        sigma: Standard deviation of the Gaussian that spreads the peaks, mm.
        peaks: Their number; the first two do not move.
        border: Distance of all peaks from the image's faces, mm.
        planar: No displacement along the last axis (the published 2D mode, on volumes).
    """

    max_deform: float
    sigma: float
    peaks: int = 100
    border: float = 33.0
    planar: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (name == "sigma" and value == 0):
                raise UserError(f"{type(self).__name__}: {name}={value} is too small; raise it.")

    def place(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> NDArray[np.int64]:
        """(P, D) voxels for peaks in the box inside the border."""
        return rng.integers(0, shape, (self.peaks, len(shape)))

    def draw(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Peaks:
        """Peaks for an image; where two share a voxel, the later one counts.

        Raises:
            UserError: The border leaves no voxel of the image.
        """
        border = np.array([math.ceil(self.border / mm) for mm in spacing])
        inner = np.array(shape) - 2 * border
        if inner.min() < 1:
            raise UserError(
                f"{type(self).__name__}: border={self.border:g} mm leaves nothing of an image of "
                f"{' x '.join(map(str, shape))} voxels: set a smaller border or give larger images."
            )
        places = border + self.place(rng, inner.tolist(), spacing)
        vectors = rng.uniform(-self.max_deform, self.max_deform, places.shape).astype(np.float32)
        vectors[:STILL] = 0
        if self.planar:
            vectors[:, -1] = 0
        _, last = np.unique(places[::-1], axis=0, return_index=True)
        kept = np.sort(len(places) - 1 - last)
        return Peaks(torch.from_numpy(places[kept]), torch.from_numpy(vectors[kept]))

    def field(self, peaks: Peaks, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        """(1, D, *shape) displacement in voxels that spreads given peaks."""
        matrices = [blur_matrix(n, self.sigma / mm) for n, mm in zip(shape, spacing, strict=True)]
        blurred = spread(peaks.places, peaks.vectors, matrices)
        components = [
            renormalised(component, peaks.places, impulses) / mm
            for component, impulses, mm in zip(blurred, peaks.vectors.T, spacing, strict=True)
        ]
        return torch.stack(components)[None]

    def __call__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        return self.field(self.draw(rng, shape, spacing), shape, spacing)


@dataclass(frozen=True, kw_only=True)
class LowFrequency(PeakField):
    """Published as D0: up to 20 mm, spread by 35 mm."""

    max_deform: float = 20.0
    sigma: float = 35.0


@dataclass(frozen=True, kw_only=True)
class MediumFrequency(PeakField):
    """Published as D1: up to 15 mm, spread by 25 mm."""

    max_deform: float = 15.0
    sigma: float = 25.0


@dataclass(frozen=True, kw_only=True)
class HighFrequency(PeakField):
    """Published as D2: peaks apart from one another, up to 15 mm, spread by 20 mm.

    Args:
        distance: Peaks are further apart than this along one axis at least, mm.
        area: Half the width of the boxes that :meth:`deformed_area` marks, mm.
        **more: As :class:`PeakField`; fewer than ``peaks`` are placed if no more have room.
    """

    max_deform: float = 15.0
    sigma: float = 20.0
    distance: float = 40.0
    area: float = 20.0

    def place(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> NDArray[np.int64]:
        apart = [round(self.distance / mm) for mm in spacing]
        room = math.prod(-(-n // (d + 1)) for n, d in zip(shape, apart, strict=True))
        if room <= STILL:
            raise UserError(
                f"HighFrequency: distance={self.distance:g} mm leaves room for {room} peaks at most"
                f" in the {' x '.join(map(str, shape))} voxels inside the border, and the first "
                f"{STILL} do not move: set a smaller distance or give larger images."
            )
        return spaced_places(rng, shape, apart, self.peaks)

    def deformed_area(self, peaks: Peaks, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        """(1, *shape) true in the boxes about the peaks, one voxel to either side of their slice
        if planar.
        """
        reach = [round(self.area / mm) for mm in spacing]
        if self.planar:
            reach[-1] = 1
        marked = torch.zeros(1, *shape, dtype=torch.bool)
        for place in peaks.places.tolist():
            box = tuple(slice(max(x - r, 0), x + r + 1) for x, r in zip(place, reach, strict=True))
            marked[0][box] = True
        return marked
