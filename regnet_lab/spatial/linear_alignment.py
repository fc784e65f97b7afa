"""Linear alignment of two images in the world, by SimpleITK, before anything is deformed.

An alignment is called with the two images and, if there are any, their masks, and returns the map
(4, 4) of the fixed image's world to the moving image's, RAS+ mm.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame, components, matrix_of

BINS = 32
FEWEST = 50_000  # voxels of a level, if the image has them
PLAUSIBLE = (0.2, 5.0)  # change of volume that anatomy allows


@dataclass(frozen=True)
class Sides:
    """Two images and their masks, float32, at one resolution."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None


def overlap(fixed: Frame, moving: Frame) -> float:
    """Share of a coarse lattice over the fixed image that lies in the moving one's box."""
    axes = [np.linspace(0, n - 1, 9) for n in fixed.shape]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.ndim)
    there = coordinates.transform(
        np.linalg.inv(moving.lps), coordinates.transform(fixed.lps, lattice)
    )
    inside = (there > -0.5) & (there < np.array(moving.shape) - 0.5)
    return float(inside.all(1).mean())


def check_overlap(fixed: Frame, moving: Frame) -> None:
    """Raises UserError if the two images share no place in the world."""
    if not overlap(fixed, moving) and not overlap(moving, fixed):
        raise UserError(
            "The two images share no place in the world: check origin and orientation in their "
            "headers, or begin from their centres with align.start=geometry."
        )


def shrunk(image: sitk.Image, factor: float) -> sitk.Image:
    """The image on a grid whose voxels are ``factor`` times its finest, averaged; fewer times
    where a histogram would have too little to count.
    """
    frame = Frame.of(image)
    own = np.array(image.GetSpacing())

    def at(factor: float) -> np.ndarray:
        return np.maximum(np.rint(frame.shape * own / np.maximum(own, factor * own.min())), 1)

    while factor > 1 and at(factor).prod() < FEWEST:
        factor *= 0.9
    size = at(factor)
    array = torch.from_numpy(np.ascontiguousarray(components(image), np.float32))[None, None]
    small = ops.resize(array, size.astype(int).tolist())[0, 0].numpy()
    stretch = np.eye(4)
    for axis, ratio in enumerate(frame.shape / size):
        stretch[axis, axis], stretch[axis, 3] = ratio, (ratio - 1) / 2
    return coordinates.to_image(small, frame.affine @ stretch)


def level(sides: Sides, factor: float) -> Sides:
    """Everything shrunk; a voxel is in a mask if most of it is."""

    def mask(image: sitk.Image | None) -> sitk.Image | None:
        return None if image is None else sitk.Cast(shrunk(image, factor) >= 0.5, sitk.sitkUInt8)

    return Sides(
        shrunk(sides.fixed, factor),
        shrunk(sides.moving, factor),
        mask(sides.fixed_mask),
        mask(sides.moving_mask),
    )


def starts(sides: Sides) -> Iterator[tuple[str, list[float]]]:
    """Translations in mm LPS+ from which to begin, by name."""
    ndim = sides.fixed.GetDimension()
    kind = sitk.CenteredTransformInitializerFilter
    whole = (sides.fixed, sides.moving)
    ways = {"geometry": (kind.GEOMETRY, whole), "moments": (kind.MOMENTS, whole)}
    if sides.fixed_mask and sides.moving_mask:
        ways["masks"] = (kind.MOMENTS, (sides.fixed_mask, sides.moving_mask))
    yield "world", [0.0] * ndim
    for name, (mode, (fixed, moving)) in ways.items():
        with suppress(RuntimeError):  # an image without mass has no moments
            images = (sitk.Cast(image, sitk.sitkFloat32) for image in (fixed, moving))
            found = sitk.CenteredTransformInitializer(*images, sitk.AffineTransform(ndim), mode)
            shift = found.TransformPoint([0.0] * ndim)
            if np.isfinite(shift).all():
                yield name, list(shift)


class Nothing:
    """Trust the headers: the identity.

    Raises:
        UserError: By them the images share no place.
    """

    def __call__(self, sides: Sides) -> coordinates.Matrix:
        check_overlap(Frame.of(sides.fixed), Frame.of(sides.moving))
        return np.eye(4)


class Linear:
    """Maximise Mattes' mutual information over a linear map, coarse to fine.

    Args:
        kinds: What is optimised, one after the other: ``rigid``, ``affine``; none: begin only.
        start: ``world`` (the headers), ``geometry`` (centres of the boxes), ``moments`` (centres
            of mass), ``masks`` (centres of the masks), or ``auto``: the best of these.
        factors: Shrink factors of the levels, in voxels of the finest spacing.
        iterations: Steps at each level, at most.
        samples: Voxels of the fixed mask looked at in each step.
        seed: Of their choice.
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("affine",),
        start: str = "auto",
        factors: Sequence[float] = (4, 2),
        iterations: int = 100,
        samples: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.kinds, self.start, self.factors = list(kinds), start, list(factors)
        self.iterations, self.samples, self.seed = iterations, samples, seed

    def __call__(self, sides: Sides) -> coordinates.Matrix:
        """Raises UserError if the images share no place, or too little for a measure."""
        if self.start == "auto":
            check_overlap(Frame.of(sides.fixed), Frame.of(sides.moving))
        coarse = level(sides, self.factors[0])
        transform = self.begin(coarse)
        for kind in self.kinds:
            for factor in self.factors:
                at = coarse if factor == self.factors[0] else level(sides, factor)
                transform = self.optimise(at, of_kind(kind, transform, at.fixed))
        return matrix_of(transform)

    def method(self, sides: Sides) -> sitk.ImageRegistrationMethod:
        """Mutual information of two images within their masks."""
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetInterpolator(sitk.sitkLinear)
        inside = math.prod(sides.fixed.GetSize())
        if sides.fixed_mask is not None:
            inside = int(np.count_nonzero(sitk.GetArrayViewFromImage(sides.fixed_mask)))
        share = self.samples / max(inside, 1)
        if share < 1:  # else every voxel, once
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, self.seed + 1)  # 0 means the clock
        if sides.fixed_mask is not None:
            method.SetMetricFixedMask(sides.fixed_mask)
        if sides.moving_mask is not None:
            method.SetMetricMovingMask(sides.moving_mask)
        return method

    def begin(self, sides: Sides) -> sitk.Transform:
        """The start asked for, or the one with the most mutual information."""
        found = dict(starts(sides))
        if self.start != "auto" and self.start not in found:
            raise UserError(f"align.start={self.start} must be auto or one of {', '.join(found)}.")
        chosen = found if self.start == "auto" else {self.start: found[self.start]}
        ndim = sides.fixed.GetDimension()
        unlike: dict[str, float] = {}
        for name, shift in chosen.items():
            method = self.method(sides)
            method.SetInitialTransform(sitk.TranslationTransform(ndim, shift))
            with suppress(RuntimeError):  # the masks or boxes do not meet
                unlike[name] = method.MetricEvaluate(sides.fixed, sides.moving)
        if not unlike:
            raise UserError(
                "The two images or their masks do not meet anywhere: check their headers, or begin "
                "from their centres with align.start=geometry."
            )
        return sitk.TranslationTransform(ndim, found[min(unlike, key=unlike.__getitem__)])

    def optimise(self, sides: Sides, transform: sitk.Transform) -> sitk.Transform:
        """One level; where the result is worse, or none of anatomy's, what it began with."""
        method = self.method(sides)
        step = float(min(sides.fixed.GetSpacing()))
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=step,
            minStep=step / 1000,
            numberOfIterations=self.iterations,
            gradientMagnitudeTolerance=1e-8,  # else small images stop at once
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=False)
        try:
            before = method.MetricEvaluate(sides.fixed, sides.moving)
            found = method.Execute(sides.fixed, sides.moving)
        except RuntimeError:  # it was driven apart
            return transform
        volume = np.linalg.det(matrix_of(found)[:3, :3])
        better = method.GetMetricValue() <= before
        return found if better and PLAUSIBLE[0] < volume < PLAUSIBLE[1] else transform


def of_kind(kind: str, begun: sitk.Transform, fixed: sitk.Image) -> sitk.Transform:
    """A linear map as a transform of a kind, turning about the middle of the fixed image.

    Raises:
        UserError: There is no such kind.
    """
    ndim = fixed.GetDimension()
    makers: dict[str, Callable[[], Any]] = {
        "rigid": {2: sitk.Euler2DTransform, 3: sitk.Euler3DTransform}[ndim],
        "affine": lambda: sitk.AffineTransform(ndim),
    }
    if kind not in makers:
        raise UserError(f"align.kinds: '{kind}' must be one of {', '.join(makers)}.")
    middle = [(n - 1) / 2 for n in fixed.GetSize()]
    centre = fixed.TransformContinuousIndexToPhysicalPoint(middle)
    linear = coordinates.in_plane(coordinates.flip_matrix(matrix_of(begun)), ndim)[:-1, :-1]
    if kind == "rigid":
        left, _, right = np.linalg.svd(linear)
        linear = left @ right  # the nearest rotation
    made = makers[kind]()
    made.SetCenter(centre)
    made.SetMatrix(linear.ravel().tolist())
    moved = np.array(begun.TransformPoint(centre)) - np.array(centre)
    made.SetTranslation(moved.tolist())
    return made
