"""RegNet's artificial displacement fields, second version (Sokooti et al., arXiv 1908.10235).

Random B-splines that die away at the body's surface (:class:`SingleFrequency`), random B-splines
on random shapes grown from the image's edges (:class:`MixedFrequency`), and shifts.  All settings
are in millimetres, so the published stages at 2 and 4 mm differ in their settings alone; breathing
is in :mod:`regnet_lab.data.synthesis.displacements.respiratory`.
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

from regnet_lab.data.synthesis.displacements.base import separable
from regnet_lab.data.synthesis.displacements.masked_image import Scene, bounded, in_voxels, smoothed

Mask = NDArray[np.bool_]
LOOSE = 4.0  # first coefficients reach so many times the largest displacement


@lru_cache(64)
def spline_matrix(n: int, intervals: int) -> Tensor:
    """(n, intervals + 3) uniform cubic B-splines at n voxels laid over ``intervals``, float32."""
    at = torch.linspace(0, intervals, n, dtype=torch.float64)
    far = (at[:, None] - torch.arange(-1, intervals + 2)).abs()
    inner = 2 / 3 - far**2 + far**3 / 2
    outer = (2 - far).clamp(min=0) ** 3 / 6
    return torch.where(far < 1, inner, outer).float()


def framed(coefficients: NDArray, frame: int) -> NDArray:
    """(D, *grid) with zeros in the outer ``frame`` planes, of which the middle one stays."""
    inside: Mask = np.zeros(coefficients.shape[1:], bool)
    grid = inside.shape
    cut = [min(frame, (n - 1) // 2) for n in grid]
    inside[tuple(slice(c, n - c) for c, n in zip(cut, grid, strict=True))] = True
    return coefficients * inside


def spline_field(
    rng: np.random.Generator,
    scene: Scene,
    knots: Sequence[float],
    bounds: tuple[float, float],
    largest: float,
    smoothing: float,
    border: int,
) -> Tensor:
    """(D, *shape) mm of a random cubic B-spline.

    Args:
        rng: Source of the coefficients.
        scene: Its grid.
        knots: Millimetres between knots along each axis.
        bounds: Range, in units of ``largest``, into which the greatest coefficient is scaled.
        largest: Millimetres; before smoothing, coefficients reach four times this.
        smoothing: Standard deviation of the Gaussian over the coefficients, in knots.
        border: Planes of coefficients that stay zero.
    """
    lengths = [n * mm for n, mm in zip(scene.shape, scene.spacing, strict=True)]
    intervals = [max(round(mm / knot), 1) for mm, knot in zip(lengths, knots, strict=True)]
    reach = LOOSE * largest
    coefficients = rng.uniform(-reach, reach, (len(knots), *(k + 3 for k in intervals)))
    coefficients = framed(coefficients, border + 1)
    coefficients = ndimage.gaussian_filter(
        coefficients, [0, *[smoothing] * len(knots)], mode="constant"
    )
    coefficients = framed(coefficients, border)
    greatest = np.abs(coefficients).max()
    wanted = np.clip(greatest, bounds[0] * largest, bounds[1] * largest)
    scaled = torch.from_numpy(coefficients * (wanted / max(greatest, 1e-12))).float()
    matrices = [spline_matrix(n, k) for n, k in zip(scene.shape, intervals, strict=True)]
    return separable(scaled, matrices)


@dataclass(frozen=True, kw_only=True)
class SingleFrequency:
    """A B-spline of one knot distance, zero outside the body, smooth and bounded.

    Args:
        max_deform: Largest component, mm.
        knots: Distance of knots, mm.
        ratio: Share of ``max_deform`` that this field reaches.
        border: Planes of coefficients that stay zero.
        smoothing: Of the coefficients, knots.
        background: Gaussian over the field after the body is cut out, mm for ``max_deform`` 7.
    """

    max_deform: float
    knots: float
    ratio: float = 1.0
    border: int = 2
    smoothing: float = 0.8
    background: float = 8.0

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        largest = self.ratio * self.max_deform
        knots = [self.knots] * len(scene.shape)
        u = spline_field(rng, scene, knots, (0, 1.7), largest, self.smoothing, self.border)
        u = smoothed(u * scene.body, self.background * largest / 7, scene.spacing)
        return in_voxels(bounded(u, largest), scene.spacing)


def edges(scene: Scene, low: float, high: float) -> Mask:
    """Canny's edges of the image, by hysteresis between two slopes per voxel."""
    image = sitk.GetImageFromArray(scene.image.float().numpy())
    found = sitk.CannyEdgeDetection(image, lowerThreshold=low, upperThreshold=high)
    return sitk.GetArrayFromImage(found) > 0


def block(centre: Sequence[int], radius: Sequence[int]) -> tuple[slice, ...]:
    """The box about a voxel, as far as there are voxels."""
    return tuple(slice(max(c - r, 0), c + r + 1) for c, r in zip(centre, radius, strict=True))


def half_box(rng: np.random.Generator, ndim: int) -> Mask:
    """A structuring element of 9^D voxels, empty on one side of its middle."""
    element = np.ones((9,) * ndim, bool)
    element[(slice(None),) * int(rng.integers(ndim)) + (slice(5, None),)] = False
    return element if rng.random() < 0.5 else np.flip(element)


def grown(rng: np.random.Generator, seeds: Mask, steps: int, radius: Sequence[int]) -> Mask:
    """Random shapes: seeds made thick, wiped out in places and grown in others.

    The first tenth of twelve parts of the steps empty a box about a random voxel, the eleventh
    thickens what is in a box by one voxel, the last by a 9^D half box, in boxes that are then
    mostly left alone.

    Args:
        rng: Source of the places.
        seeds: (*shape).
        steps: How many.
        radius: Half the width of a box along each axis, voxels.
    """
    mask = ndimage.binary_dilation(seeds, np.ones((3,) * seeds.ndim, bool))
    thick = ndimage.generate_binary_structure(seeds.ndim, 2)
    places = np.argwhere(seeds)
    for step in range(1, steps):
        if not len(places):
            break
        centre = places[rng.integers(len(places))]
        box = block(centre.tolist(), radius)
        if step < steps * 10 / 12:
            mask[box] = False
            continue
        late = step >= steps * 11 / 12
        element = half_box(rng, seeds.ndim) if late else thick
        mask[box] = ndimage.binary_dilation(mask[box], element)
        if rng.random() < 0.7 if late else step % 2:
            places = places[(np.abs(places - centre) > radius).any(1)]
    return mask


@dataclass(frozen=True, kw_only=True)
class MixedFrequency:
    """B-splines on random shapes along the edges in and about the lung, each component its own.

    Args:
        max_deform: Largest component, mm.
        knots: Distance of knots along each axis, mm.
        sigma: Range of the Gaussian over each component, mm.
        steps: Of growing the shapes; published 200 and 150.
        radius: Half the width of their boxes, mm.
        canny: Lower and upper slope of edges, in the image's unit: 50 and 100 HU, divided by the
            width of the window that made [0, 1] of them.
        smoothing: Of the coefficients, knots.
    """

    max_deform: float
    knots: Sequence[float]
    sigma: tuple[float, float] = (5.0, 10.0)
    steps: int = 150
    radius: float = 20.0
    canny: tuple[float, float] = (0.036, 0.071)
    smoothing: float = 0.5

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        near = ndimage.binary_dilation(scene.need_lung(self), iterations=3)
        seeds = edges(scene, *self.canny) & near
        radius = [round(self.radius / mm) for mm in scene.spacing]
        shapes = [grown(rng, seeds, self.steps, radius) for _ in scene.shape]
        u = spline_field(rng, scene, self.knots, (1, 2), self.max_deform, self.smoothing, 1)
        u = u * torch.from_numpy(np.stack(shapes))
        sigma = rng.uniform(*self.sigma, len(shapes)).tolist()
        return in_voxels(bounded(smoothed(u, sigma, scene.spacing), self.max_deform), scene.spacing)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A shift by U(-max_deform, max_deform) mm along each axis, none with probability 0.2."""

    max_deform: float

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        ndim = len(scene.shape)
        shift = rng.uniform(-self.max_deform, self.max_deform, ndim) * (rng.random(ndim) >= 0.2)
        u = torch.from_numpy(shift).float().view(-1, *[1] * ndim).repeat(1, *scene.shape)
        return in_voxels(u, scene.spacing)
