"""Linear alignment of two images in the world by SimpleITK, before deformable registration.

An alignment is a callable that takes an :class:`ImagePair` and returns the matrix (4, 4) from the
world of the fixed image to that of the moving image, RAS+ mm.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid, transform_to_matrix
from regnet_lab.spatial.image_pyramid import ImagePair, shrink_pair
from regnet_lab.spatial.whole_voxels import SampledPair, keep_thin_axes, prefer_whole_voxels

HISTOGRAM_BINS = 32
VOLUME_RATIO_RANGE = (0.2, 5.0)  # plausible changes of volume between two anatomies


def compute_overlap(fixed: ImageGrid, moving: ImageGrid) -> float:
    """Compute the fraction of a coarse lattice over the fixed grid that lies in the moving one."""
    axes = [np.linspace(0, n - 1, 9) for n in fixed.shape]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.ndim)
    world = coordinates.apply_affine(fixed.voxel_to_lps, lattice)
    voxels = coordinates.apply_affine(np.linalg.inv(moving.voxel_to_lps), world)
    inside = (voxels > -0.5) & (voxels < np.array(moving.shape) - 0.5)
    return float(inside.all(1).mean())


def check_overlap(pair: ImagePair) -> None:
    """Raise UserError if the two images do not overlap in the world."""
    fixed, moving = ImageGrid.from_sitk(pair.fixed), ImageGrid.from_sitk(pair.moving)
    if not compute_overlap(fixed, moving) and not compute_overlap(moving, fixed):
        raise UserError(
            "The two images do not overlap in the world: check origin and orientation in their "
            "headers, or start from their centers with align.init=geometry."
        )


def propose_translations(pair: ImagePair) -> Iterator[tuple[str, list[float]]]:
    """Yield the names and values, in LPS+ mm, of possible initial translations."""
    ndim = pair.fixed.GetDimension()
    mode = sitk.CenteredTransformInitializerFilter
    images = (pair.fixed, pair.moving)
    proposals = {"geometry": (mode.GEOMETRY, images), "moments": (mode.MOMENTS, images)}
    if pair.fixed_mask and pair.moving_mask:
        proposals["masks"] = (mode.MOMENTS, (pair.fixed_mask, pair.moving_mask))
    yield "identity", [0.0] * ndim
    for name, (center, (fixed, moving)) in proposals.items():
        with suppress(RuntimeError):  # an image without mass has no moments
            float_images = (sitk.Cast(image, sitk.sitkFloat32) for image in (fixed, moving))
            initial = sitk.CenteredTransformInitializer(
                *float_images, sitk.AffineTransform(ndim), center
            )
            translation = initial.TransformPoint([0.0] * ndim)
            if np.isfinite(translation).all():
                yield name, list(translation)


class IdentityAlignment:
    """The identity: the headers place both images correctly."""

    def __call__(self, pair: ImagePair) -> coordinates.Matrix:
        """Return the identity; raise UserError if the images then do not overlap."""
        check_overlap(pair)
        return np.eye(4)


@dataclass
class LinearAlignment:
    """Maximization of Mattes' mutual information over linear transforms, coarse to fine.

    Args:
        transforms: Transforms optimized one after the other: ``rigid``, ``affine``; none: only the
            initial translation.
        init: Initial translation: ``identity`` (trust the headers), ``geometry`` (image centers),
            ``moments`` (centers of mass), ``masks`` (centers of the masks), or ``auto``: the one
            of these with the most mutual information.
        shrink_factors: Shrink factors of the levels, in voxels of the finest spacing.
        iterations: Most optimizer steps per level.
        samples: Voxels of the fixed mask sampled in each step.
    """

    transforms: Sequence[str] = ("affine",)
    init: str = "auto"
    shrink_factors: Sequence[float] = (4, 2)
    iterations: int = 100
    samples: int = 100_000
    seed: int = 0

    def __call__(self, pair: ImagePair) -> coordinates.Matrix:
        """Align the images; raise UserError if they do not overlap."""
        if self.init == "auto":
            check_overlap(pair)
        coarse = shrink_pair(pair, self.shrink_factors[0])
        transform = start = self.choose_translation(coarse)
        for kind in self.transforms:
            for factor in self.shrink_factors:
                level = coarse if factor == self.shrink_factors[0] else shrink_pair(pair, factor)
                initial = create_transform(kind, transform, level.fixed)
                transform = self.optimize_level(level, initial)
        sampled = SampledPair(pair.fixed, pair.moving, pair.fixed_mask)
        initial_matrix = transform_to_matrix(start)
        matrix = keep_thin_axes(sampled, transform_to_matrix(transform), initial_matrix)
        return prefer_whole_voxels(sampled, matrix, [initial_matrix, np.eye(4)])

    def create_method(self, pair: ImagePair) -> sitk.ImageRegistrationMethod:
        """Create a registration method that measures mutual information within the masks."""
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
        method.SetInterpolator(sitk.sitkLinear)
        voxels = math.prod(pair.fixed.GetSize())
        if pair.moving_mask is not None:
            method.SetMetricMovingMask(pair.moving_mask)
        if pair.fixed_mask is not None:
            method.SetMetricFixedMask(pair.fixed_mask)
            voxels = int(np.count_nonzero(sitk.GetArrayViewFromImage(pair.fixed_mask)))
        fraction = self.samples / max(voxels, 1)
        if fraction < 1:  # else every voxel is used
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(fraction, self.seed + 1)  # 0: seed from the clock
        return method

    def choose_translation(self, pair: ImagePair) -> sitk.Transform:
        """Return the initial translation of the setting, or the one with the best metric."""
        proposals = dict(propose_translations(pair))
        candidates = {k: v for k, v in proposals.items() if self.init in ("auto", k)}
        if not candidates:
            names = ", ".join(proposals)
            raise UserError(f"align.init={self.init} must be auto or one of {names}.")
        ndim = pair.fixed.GetDimension()
        values: dict[str, float] = {}
        for name, translation in candidates.items():
            method = self.create_method(pair)
            method.SetInitialTransform(sitk.TranslationTransform(ndim, translation))
            with suppress(RuntimeError):  # images or masks do not overlap
                values[name] = method.MetricEvaluate(pair.fixed, pair.moving)
        if not values:
            raise UserError(
                "The two images or their masks do not overlap: check their headers, or start from "
                "their centers with align.init=geometry."
            )
        best = min(values, key=values.__getitem__)
        return sitk.TranslationTransform(ndim, proposals[best])

    def optimize_level(self, pair: ImagePair, initial: sitk.Transform) -> sitk.Transform:
        """Optimize a transform at one resolution level.

        ``initial`` is returned if the result is worse or changes the volume implausibly.
        """
        method = self.create_method(pair)
        step = float(min(pair.fixed.GetSpacing()))
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=step,
            minStep=step / 1000,
            numberOfIterations=self.iterations,
            gradientMagnitudeTolerance=1e-8,  # with the default small images stop at once
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(initial, inPlace=False)
        try:
            before = method.MetricEvaluate(pair.fixed, pair.moving)
            optimized = method.Execute(pair.fixed, pair.moving)
        except RuntimeError:  # the images no longer overlap
            return initial
        volume = np.linalg.det(transform_to_matrix(optimized)[:3, :3])
        better = method.GetMetricValue() <= before
        plausible = VOLUME_RATIO_RANGE[0] < volume < VOLUME_RATIO_RANGE[1]
        return optimized if better and plausible else initial


def create_transform(kind: str, initial: sitk.Transform, fixed: sitk.Image) -> sitk.Transform:
    """Create a ``rigid`` (the nearest) or ``affine`` form of a linear transform.

    It is centered on the fixed image.
    """
    ndim = fixed.GetDimension()
    constructors: dict[str, Callable[[], Any]] = {
        "rigid": {2: sitk.Euler2DTransform, 3: sitk.Euler3DTransform}[ndim],
        "affine": lambda: sitk.AffineTransform(ndim),
    }
    if kind not in constructors:
        raise UserError(f"align.transforms: '{kind}' must be one of {', '.join(constructors)}.")
    center = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    linear = coordinates.flip_matrix(transform_to_matrix(initial))[:ndim, :ndim]
    if kind == "rigid":
        left, _, right = np.linalg.svd(linear)
        linear = left @ right  # the nearest rotation
    transform = constructors[kind]()
    transform.SetCenter(center)
    transform.SetMatrix(linear.ravel().tolist())
    translation = np.array(initial.TransformPoint(center)) - np.array(center)
    transform.SetTranslation(translation.tolist())
    return transform
