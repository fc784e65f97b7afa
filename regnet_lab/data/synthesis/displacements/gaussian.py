"""RegNet's artificial displacement fields, version 0.1 (Sokooti et al., MICCAI 2017).

Random vectors at random voxels, the peaks, are smoothed by a Gaussian and rescaled to their
original magnitude. Settings are in mm, as published for images of 1 mm; fields are in voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import compute_gaussian_weights
from regnet_lab.errors import UserError

TRUNCATION_SIGMAS = 4.0  # the Gaussian is truncated here
MIN_FREE_VOXELS = 4  # no further peak is placed below this number
NUM_FIXED_PEAKS = 2  # leading peaks without displacement


@lru_cache(64)
def compute_blur_matrix(n: int, sigma: float) -> Tensor:
    """Compute the (n, n) Gaussian smoothing matrix of an axis, ``sigma`` in voxels; float32.

    The Gaussian is truncated at 4 sigma and the axis is reflected at its outer faces (d c b a |
    a b c d | d c b a), as in scipy.ndimage.gaussian_filter1d(mode="reflect").
    """
    radius = int(TRUNCATION_SIGMAS * sigma + 0.5)
    repeats = math.ceil((radius + n) / (2 * n))
    i = torch.arange(n)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for period in range(-repeats, repeats + 1):
        for image in (i, -1 - i):  # the axis and its mirror image
            matrix += compute_gaussian_weights(i[:, None] - image - 2 * n * period, sigma, radius)
    return matrix.float()


def compute_blur_matrices(
    shape: Sequence[int], sigma: float, spacing: Sequence[float]
) -> list[Tensor]:
    """Compute the Gaussian smoothing matrix of every axis, ``sigma`` in mm."""
    return [compute_blur_matrix(n, sigma / mm) for n, mm in zip(shape, spacing, strict=True)]


def get_box(voxel: Sequence[int], radius: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a box around a voxel, clipped at the lower image border."""
    return tuple(slice(max(x - r, 0), x + r + 1) for x, r in zip(voxel, radius, strict=True))


def spread_peaks(voxels: Tensor, vectors: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix (n_k, n_k) along each axis k of an image (C, *n) that is zero but at P voxels.

    f_c(x) = sum_p v_pc prod_k M_k[x_k, voxels_pk], with distinct voxels (P, D) and their vectors
    (P, C).
    """
    *first, last = [m[:, index] for m, index in zip(matrices, voxels.T, strict=True)]  # (n_k, P)
    product = vectors.T
    for column in first:
        product = product.unsqueeze(-2) * column  # (C, n_0, ..., n_k, P)
    return product @ last.T


def rescale_to_peaks(blurred: Tensor, voxels: Tensor, impulses: Tensor) -> Tensor:
    """Rescale a blurred component (*shape) to the range of its impulses (P,) at voxels (P, D).

    Positive values are mapped linearly from [smallest, largest] to [0, largest impulse], negative
    values from [lowest, 0] to [lowest impulse among voxels with a negative blurred value, 0].
    """
    positive = blurred > 0
    lowest, largest = blurred.aminmax()
    depth = torch.where(blurred[tuple(voxels.T)] < 0, impulses, 0.0).min()
    lower = blurred * (depth / lowest.clamp(max=-1e-30))
    if not positive.any():
        return lower
    smallest = blurred[positive].min()
    slope = impulses.max().clamp(min=0) / (largest - smallest).clamp(min=1e-30)
    return torch.where(positive, (blurred - smallest) * slope, lower)


def sample_spaced_voxels(
    rng: Generator, shape: Sequence[int], distance: Sequence[int], count: int
) -> NDArray[np.int64]:
    """Sample (P, D) voxels, any two of which are further apart than ``distance`` along some axis.

    Voxels are drawn from those still free, until there are ``count`` or hardly any remain.
    """
    free = np.ones(tuple(shape), bool)
    rows = free.reshape(len(free), -1)
    remaining = rows.sum(1)  # free voxels in each plane of the first axis
    voxels: list[tuple[int, ...]] = []
    while len(voxels) < count and remaining.sum() > MIN_FREE_VOXELS:
        plane = rng.choice(len(remaining), p=remaining / remaining.sum())
        within = rng.choice(np.flatnonzero(rows[plane]))
        voxel = (int(plane), *(int(k) for k in np.unravel_index(within, free.shape[1:])))
        box = get_box(voxel, distance)
        remaining[box[0]] -= free[box].reshape(len(free[box]), -1).sum(1)
        free[box] = False
        voxels.append(voxel)
    return np.array(voxels, np.int64).reshape(-1, len(shape))


@dataclass(frozen=True)
class Peaks:
    """Positions (P, D) in voxels and displacements (P, D) in mm."""

    voxels: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True)
class PeakDisplacement:
    """Base class of the three frequencies."""

    # largest component of a peak, mm: each is drawn from U(-max_deform, max_deform)
    max_deform: float
    sigma: float  # standard deviation of the smoothing Gaussian, mm
    num_peaks: int = 100  # the first two have no displacement
    border: float = 33.0  # smallest distance of a peak from the image border, mm
    # set the displacement along the last axis to zero (the 2D mode of the paper)
    planar: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (name == "sigma" and value == 0):
                raise UserError(f"{type(self).__name__}: {name}={value} is too small; increase it.")

    def sample_voxels(
        self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> NDArray[np.int64]:
        """Sample (P, D) peak voxels in the box inside the border."""
        return rng.integers(0, shape, (self.num_peaks, len(shape)))

    def sample_peaks(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Peaks:
        """Sample peaks for an image; of peaks at the same voxel the last one is kept."""
        border = np.ceil(self.border / np.asarray(spacing)).astype(int)
        inner = np.array(shape) - 2 * border
        if inner.min() < 1:
            raise UserError(
                f"{type(self).__name__}: border={self.border:g} mm leaves no voxel of an image of "
                f"{' x '.join(map(str, shape))} voxels: reduce border or use larger images."
            )
        voxels = border + self.sample_voxels(rng, inner.tolist(), spacing)
        vectors = rng.uniform(-self.max_deform, self.max_deform, voxels.shape).astype(np.float32)
        vectors[:NUM_FIXED_PEAKS] = 0
        if self.planar:
            vectors[:, -1] = 0
        _, last = np.unique(voxels[::-1], axis=0, return_index=True)
        indices = np.sort(len(voxels) - 1 - last)
        return Peaks(torch.from_numpy(voxels[indices]), torch.from_numpy(vectors[indices]))

    def compute_displacement(
        self, peaks: Peaks, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        """Compute the displacement (1, D, *shape) of peaks, in voxels."""
        matrices = compute_blur_matrices(shape, self.sigma, spacing)
        blurred = spread_peaks(peaks.voxels, peaks.vectors, matrices)
        components = [
            rescale_to_peaks(component, peaks.voxels, impulses) / mm
            for component, impulses, mm in zip(blurred, peaks.vectors.T, spacing, strict=True)
        ]
        return torch.stack(components)[None]

    def __call__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> Tensor:
        return self.compute_displacement(self.sample_peaks(rng, shape, spacing), shape, spacing)


@dataclass(frozen=True, kw_only=True)
class LowFrequency(PeakDisplacement):
    """Low frequency (D0 in the paper): up to 20 mm, sigma 35 mm."""

    max_deform: float = 20.0
    sigma: float = 35.0


@dataclass(frozen=True, kw_only=True)
class MediumFrequency(PeakDisplacement):
    """Medium frequency (D1 in the paper): up to 15 mm, sigma 25 mm."""

    max_deform: float = 15.0
    sigma: float = 25.0


@dataclass(frozen=True, kw_only=True)
class HighFrequency(PeakDisplacement):
    """High frequency (D2 in the paper): up to 15 mm, sigma 20 mm, with separated peaks.

    Fewer than ``num_peaks`` are placed if no more fit.
    """

    max_deform: float = 15.0
    sigma: float = 20.0
    min_peak_distance: float = 40.0  # any two peaks are further apart along some axis, mm
    deformed_area_half_width: float = 20.0  # of the boxes of compute_deformed_area, mm

    def sample_voxels(
        self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]
    ) -> NDArray[np.int64]:
        distances = [round(self.min_peak_distance / mm) for mm in spacing]
        capacity = math.prod(-(-n // (d + 1)) for n, d in zip(shape, distances, strict=True))
        if capacity <= NUM_FIXED_PEAKS:
            raise UserError(
                f"HighFrequency: min_peak_distance={self.min_peak_distance:g} mm leaves room for "
                f"at most {capacity} peaks in the {' x '.join(map(str, shape))} voxels inside the "
                f"border, and the first {NUM_FIXED_PEAKS} have no displacement: reduce "
                "min_peak_distance or use larger images."
            )
        return sample_spaced_voxels(rng, shape, distances, self.num_peaks)

    def compute_deformed_area(
        self, peaks: Peaks, shape: Sequence[int], spacing: Sequence[float]
    ) -> Tensor:
        """Return a (1, *shape) mask of boxes around the peaks; 3 slices thick if planar."""
        reach = [round(self.deformed_area_half_width / mm) for mm in spacing]
        if self.planar:
            reach[-1] = 1
        mask = torch.zeros(1, *shape, dtype=torch.bool)
        for voxel in peaks.voxels.tolist():
            mask[0][get_box(voxel, reach)] = True
        return mask
