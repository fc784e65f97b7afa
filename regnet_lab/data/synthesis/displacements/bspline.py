"""RegNet's artificial displacement fields, second version (Sokooti et al., arXiv 1908.10235).

Random B-splines that vanish outside the body (:class:`SingleFrequency`), random B-splines on random
shapes grown from image edges (:class:`MixedFrequency`), and translations. All settings are in mm.
Respiratory motion is in :mod:`regnet_lab.data.synthesis.displacements.respiratory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import SimpleITK as sitk
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import apply_separable
from regnet_lab.data.synthesis.displacements.gaussian import get_box
from regnet_lab.data.synthesis.displacements.masked_image import (
    MaskedImage,
    limit_magnitude,
    smooth_field,
    to_voxels,
)
from regnet_lab.ops.bspline import cubic_bspline

Mask = NDArray[np.bool_]
INITIAL_COEFFICIENT_RANGE = 4.0  # in units of the largest displacement


@lru_cache(64)
def compute_spline_matrix(n: int, intervals: int) -> Tensor:
    """Compute (n, intervals + 3) cubic B-spline weights of n voxels spread over ``intervals``."""
    at = torch.linspace(0, intervals, n, dtype=torch.float64)
    return cubic_bspline(at[:, None] - torch.arange(-1, intervals + 2)).float()


def zero_outer_planes(coefficients: NDArray, border: int) -> NDArray:
    """Set the outer ``border`` planes of (D, *grid) to zero, but never the middle plane."""
    inside: Mask = np.zeros(coefficients.shape[1:], bool)
    widths = [(min(border, (n - 1) // 2), n) for n in inside.shape]
    inside[tuple(slice(width, n - width) for width, n in widths)] = True
    return coefficients * inside


def sample_spline_field(
    rng: Generator,
    masked_image: MaskedImage,
    knots: Sequence[float],
    bounds: tuple[float, float],
    largest: float,
    smoothing: float,
    border: int,
) -> Tensor:
    """Sample a random cubic B-spline displacement (D, *shape) in mm.

    Args:
        rng: Source of random numbers.
        masked_image: Image that defines the grid.
        knots: Knot spacing along each axis, mm.
        bounds: Range, in units of ``largest``, to which the largest coefficient is scaled.
        largest: Largest displacement, mm; before smoothing, coefficients reach four times this.
        smoothing: Standard deviation of the Gaussian that smooths the coefficients, in knots.
        border: Number of outer coefficient planes that are zero.
    """
    lengths = [n * mm for n, mm in zip(masked_image.shape, masked_image.spacing, strict=True)]
    intervals = [max(round(mm / knot), 1) for mm, knot in zip(lengths, knots, strict=True)]
    limit = INITIAL_COEFFICIENT_RANGE * largest
    coefficients = rng.uniform(-limit, limit, (len(knots), *(k + 3 for k in intervals)))
    coefficients = zero_outer_planes(coefficients, border + 1)
    widths = [0, *[smoothing] * len(knots)]
    coefficients = ndimage.gaussian_filter(coefficients, widths, mode="constant")
    coefficients = zero_outer_planes(coefficients, border)
    maximum = np.abs(coefficients).max()
    target = np.clip(maximum, bounds[0] * largest, bounds[1] * largest)
    scaled = torch.from_numpy(coefficients * (target / max(maximum, 1e-12))).float()
    matrices = [
        compute_spline_matrix(n, k) for n, k in zip(masked_image.shape, intervals, strict=True)
    ]
    return apply_separable(scaled, matrices)


@dataclass(frozen=True, kw_only=True)
class SingleFrequency:
    """A random B-spline with one knot spacing, smoothly reduced to zero outside the body."""

    max_deform: float  # largest component, mm
    knot_spacing: float  # mm
    amplitude_ratio: float = 1.0  # largest displacement as a fraction of ``max_deform``
    zero_border: int = 2  # number of outer coefficient planes that are zero
    smoothing: float = 0.8  # standard deviation of the coefficients' smoothing, in knots
    # standard deviation of the smoothing after masking, mm at a displacement of 7 mm
    background: float = 8.0

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        largest = self.amplitude_ratio * self.max_deform
        knots = [self.knot_spacing] * len(masked_image.shape)
        u = sample_spline_field(
            rng, masked_image, knots, (0, 1.7), largest, self.smoothing, self.zero_border
        )
        u = smooth_field(u * masked_image.body, self.background * largest / 7, masked_image.spacing)
        return to_voxels(limit_magnitude(u, largest), masked_image.spacing)


def detect_edges(masked_image: MaskedImage, low: float, high: float) -> Mask:
    """Detect Canny edges, with hysteresis between two gradient thresholds per voxel."""
    image = sitk.GetImageFromArray(masked_image.image.float().numpy())
    edges = sitk.CannyEdgeDetection(image, lowerThreshold=low, upperThreshold=high)
    return sitk.GetArrayFromImage(edges) > 0


def sample_half_box(rng: Generator, ndim: int) -> Mask:
    """Sample a structuring element of 9^D voxels that is empty on one side of its center."""
    element = np.ones((9,) * ndim, bool)
    element[(slice(None),) * int(rng.integers(ndim)) + (slice(5, None),)] = False
    return element if rng.random() < 0.5 else np.flip(element)


def grow_random_shapes(rng: Generator, seeds: Mask, steps: int, radius: Sequence[int]) -> Mask:
    """Grow random shapes from seeds by erasing some parts and dilating others.

    The first ten twelfths of the steps clear a box around a random seed voxel, the next twelfth
    dilates the contents of such a box by one voxel, and the last twelfth by a 9^D half box. Seeds
    in dilated boxes are mostly not used again. ``radius`` is half the width of a box along each
    axis in voxels.
    """
    mask = ndimage.binary_dilation(seeds, np.ones((3,) * seeds.ndim, bool))
    one_voxel = ndimage.generate_binary_structure(seeds.ndim, 2)
    candidates = np.argwhere(seeds)
    for step in range(1, steps):
        if not len(candidates):
            break
        center = candidates[rng.integers(len(candidates))]
        box = get_box(center.tolist(), radius)
        if step < steps * 10 / 12:
            mask[box] = False
            continue
        late = step >= steps * 11 / 12
        element = sample_half_box(rng, seeds.ndim) if late else one_voxel
        mask[box] = ndimage.binary_dilation(mask[box], element)
        if rng.random() < 0.7 if late else step % 2:
            candidates = candidates[(np.abs(candidates - center) > radius).any(1)]
    return mask


@dataclass(frozen=True, kw_only=True)
class MixedFrequency:
    """Random B-splines on random shapes along edges in and near the lung, one per component."""

    max_deform: float  # largest component, mm
    knot_spacing: Sequence[float]  # along each axis, mm
    # range of the standard deviation of each component's smoothing, mm
    sigma: tuple[float, float] = (5.0, 10.0)
    growth_steps: int = 150  # 200 and 150 in the paper
    radius: float = 20.0  # half the width of the boxes, mm
    # lower and upper gradient threshold, in the image's unit: 50 and 100 HU divided by the width of
    # the intensity window
    canny: tuple[float, float] = (0.036, 0.071)
    smoothing: float = 0.5  # standard deviation of the coefficients' smoothing, in knots

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        near_lung = ndimage.binary_dilation(masked_image.require_lung(self), iterations=3)
        seeds = detect_edges(masked_image, *self.canny) & near_lung
        radius = [round(self.radius / mm) for mm in masked_image.spacing]
        shapes = [
            grow_random_shapes(rng, seeds, self.growth_steps, radius) for _ in masked_image.shape
        ]
        u = sample_spline_field(
            rng, masked_image, self.knot_spacing, (1, 2), self.max_deform, self.smoothing, 1
        )
        u = u * torch.from_numpy(np.stack(shapes))
        sigma = rng.uniform(*self.sigma, len(shapes)).tolist()
        u = smooth_field(u, sigma, masked_image.spacing)
        return to_voxels(limit_magnitude(u, self.max_deform), masked_image.spacing)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translation by U(-max_deform, max_deform) mm per axis, zero with probability 0.2."""

    max_deform: float

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        ndim = len(masked_image.shape)
        shift = rng.uniform(-self.max_deform, self.max_deform, ndim) * (rng.random(ndim) >= 0.2)
        u = torch.from_numpy(shift).float().view(-1, *[1] * ndim).repeat(1, *masked_image.shape)
        return to_voxels(u, masked_image.spacing)
