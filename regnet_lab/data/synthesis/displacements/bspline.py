"""RegNet's artificial displacement fields, second version (Sokooti et al., arXiv 1908.10235).

Random B-splines that vanish outside the body (:class:`SingleFrequency`), random B-splines on random
shapes grown from image edges (:class:`MixedFrequency`), and translations. All settings are in mm.
Respiratory motion is in :mod:`regnet_lab.data.synthesis.displacements.respiratory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import apply_separable
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
    rng: np.random.Generator,
    scene: MaskedImage,
    knots: Sequence[float],
    bounds: tuple[float, float],
    largest: float,
    smoothing: float,
    border: int,
) -> Tensor:
    """Sample a random cubic B-spline displacement (D, *shape) in mm.

    Args:
        rng: Random generator.
        scene: Image that defines the grid.
        knots: Knot spacing along each axis, mm.
        bounds: Range, in units of ``largest``, to which the largest coefficient is scaled.
        largest: Largest displacement, mm; before smoothing, coefficients reach four times this.
        smoothing: Standard deviation of the Gaussian that smooths the coefficients, in knots.
        border: Number of outer coefficient planes that are zero.
    """
    lengths = [n * mm for n, mm in zip(scene.shape, scene.spacing, strict=True)]
    intervals = [max(round(mm / knot), 1) for mm, knot in zip(lengths, knots, strict=True)]
    limit = INITIAL_COEFFICIENT_RANGE * largest
    coefficients = rng.uniform(-limit, limit, (len(knots), *(k + 3 for k in intervals)))
    coefficients = zero_outer_planes(coefficients, border + 1)
    coefficients = ndimage.gaussian_filter(
        coefficients, [0, *[smoothing] * len(knots)], mode="constant"
    )
    coefficients = zero_outer_planes(coefficients, border)
    maximum = np.abs(coefficients).max()
    target = np.clip(maximum, bounds[0] * largest, bounds[1] * largest)
    scaled = torch.from_numpy(coefficients * (target / max(maximum, 1e-12))).float()
    matrices = [compute_spline_matrix(n, k) for n, k in zip(scene.shape, intervals, strict=True)]
    return apply_separable(scaled, matrices)


@dataclass(frozen=True, kw_only=True)
class SingleFrequency:
    """A random B-spline with one knot spacing, smoothly reduced to zero outside the body.

    Args:
        max_deform: Largest component, mm.
        knot_spacing: Knot spacing, mm.
        amplitude_ratio: Largest displacement as a fraction of ``max_deform``.
        zero_border: Number of outer coefficient planes that are zero.
        smoothing: Standard deviation of the coefficients' smoothing, in knots.
        background: Standard deviation of the smoothing after masking, mm at a displacement of 7 mm.
    """

    max_deform: float
    knot_spacing: float
    amplitude_ratio: float = 1.0
    zero_border: int = 2
    smoothing: float = 0.8
    background: float = 8.0

    def __call__(self, rng: np.random.Generator, scene: MaskedImage) -> Tensor:
        largest = self.amplitude_ratio * self.max_deform
        knots = [self.knot_spacing] * len(scene.shape)
        u = sample_spline_field(
            rng, scene, knots, (0, 1.7), largest, self.smoothing, self.zero_border
        )
        u = smooth_field(u * scene.body, self.background * largest / 7, scene.spacing)
        return to_voxels(limit_magnitude(u, largest), scene.spacing)


def detect_edges(scene: MaskedImage, low: float, high: float) -> Mask:
    """Detect Canny edges, with hysteresis between two gradient thresholds per voxel."""
    image = sitk.GetImageFromArray(scene.image.float().numpy())
    edges = sitk.CannyEdgeDetection(image, lowerThreshold=low, upperThreshold=high)
    return sitk.GetArrayFromImage(edges) > 0


def get_box(center: Sequence[int], radius: Sequence[int]) -> tuple[slice, ...]:
    """Return the slices of a box around a voxel, clipped at the lower image border."""
    return tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(center, radius, strict=True))


def sample_half_box(rng: np.random.Generator, ndim: int) -> Mask:
    """Sample a structuring element of 9^D voxels that is empty on one side of its center."""
    element = np.ones((9,) * ndim, bool)
    element[(slice(None),) * int(rng.integers(ndim)) + (slice(5, None),)] = False
    return element if rng.random() < 0.5 else np.flip(element)


def grow_random_shapes(
    rng: np.random.Generator, seeds: Mask, steps: int, radius: Sequence[int]
) -> Mask:
    """Grow random shapes from seeds by erasing some parts and dilating others.

    The first ten twelfths of the steps clear a box around a random seed voxel, the next twelfth
    dilates the contents of such a box by one voxel, and the last twelfth by a 9^D half box. Seeds
    in dilated boxes are mostly not used again.

    Args:
        rng: Random generator.
        seeds: (*shape) mask.
        steps: Number of steps.
        radius: Half the width of a box along each axis, voxels.
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
    """Random B-splines on random shapes along edges in and near the lung, one per component.

    Args:
        max_deform: Largest component, mm.
        knot_spacing: Knot spacing along each axis, mm.
        sigma: Range of the standard deviation of each component's smoothing, mm.
        growth_steps: Number of growth steps; 200 and 150 in the paper.
        radius: Half the width of the boxes, mm.
        canny: Lower and upper gradient threshold, in the image's unit: 50 and 100 HU divided by
            the width of the intensity window.
        smoothing: Standard deviation of the coefficients' smoothing, in knots.
    """

    max_deform: float
    knot_spacing: Sequence[float]
    sigma: tuple[float, float] = (5.0, 10.0)
    growth_steps: int = 150
    radius: float = 20.0
    canny: tuple[float, float] = (0.036, 0.071)
    smoothing: float = 0.5

    def __call__(self, rng: np.random.Generator, scene: MaskedImage) -> Tensor:
        near_lung = ndimage.binary_dilation(scene.require_lung(self), iterations=3)
        seeds = detect_edges(scene, *self.canny) & near_lung
        radius = [round(self.radius / mm) for mm in scene.spacing]
        shapes = [grow_random_shapes(rng, seeds, self.growth_steps, radius) for _ in scene.shape]
        u = sample_spline_field(
            rng, scene, self.knot_spacing, (1, 2), self.max_deform, self.smoothing, 1
        )
        u = u * torch.from_numpy(np.stack(shapes))
        sigma = rng.uniform(*self.sigma, len(shapes)).tolist()
        return to_voxels(
            limit_magnitude(smooth_field(u, sigma, scene.spacing), self.max_deform), scene.spacing
        )


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A translation by U(-max_deform, max_deform) mm per axis, zero with probability 0.2."""

    max_deform: float

    def __call__(self, rng: np.random.Generator, scene: MaskedImage) -> Tensor:
        ndim = len(scene.shape)
        shift = rng.uniform(-self.max_deform, self.max_deform, ndim) * (rng.random(ndim) >= 0.2)
        u = torch.from_numpy(shift).float().view(-1, *[1] * ndim).repeat(1, *scene.shape)
        return to_voxels(u, scene.spacing)
