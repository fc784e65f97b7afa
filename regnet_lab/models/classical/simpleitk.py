"""SimpleITK: affine alignment by mutual information, and diffeomorphic demons.

Vercauteren, Pennec, Perchant, Ayache: Diffeomorphic demons: efficient non-parametric image
registration, NeuroImage 45 (2009).
"""

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from regnet_lab import ops
from regnet_lab.models.classical.base import VOXEL_AFFINE, Array, ClassicalMethod, limit_levels
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import (
    ImageGrid,
    matrix_to_transform,
    transform_to_field,
    vectors_from_image,
)
from regnet_lab.spatial.linear_alignment import ImagePair, LinearAlignment


def to_itk_image(array: NDArray) -> sitk.Image:
    """Convert an array (*spatial) to an ITK image in voxel coordinates."""
    return coordinates.array_to_sitk(array, VOXEL_AFFINE)


class AffineMI(ClassicalMethod):
    """Affine alignment that maximises Mattes' mutual information, from several starts."""

    def __init__(self, align: LinearAlignment, mask_background: bool = True) -> None:
        super().__init__(mask_background)
        self.align = align

    def register(self, fixed: Array, moving: Array) -> Array:
        masks = self.make_masks(fixed, moving) or []
        arrays = fixed, moving, *(mask.astype(np.float32) for mask in masks)
        matrix = self.align(ImagePair(*map(to_itk_image, arrays)))
        linear = matrix_to_transform(matrix, fixed.ndim)
        return vectors_from_image(transform_to_field(linear, ImageGrid(fixed.shape, VOXEL_AFFINE)))


class Demons(ClassicalMethod):
    """Diffeomorphic demons, coarse to fine, after an initial alignment.

    The histogram of the moving image is matched to the fixed one's, as demons compare intensities.

    Args:
        iterations: Iterations at each level, coarse to fine; each level is half the next.
        smoothing_sigma: Sigma of the Gaussian that smooths the displacement after every step, in
            voxels of the level.
    """

    def __init__(
        self,
        initial_alignment: ClassicalMethod,
        iterations: list[int],
        smoothing_sigma: float = 1.5,
    ) -> None:
        super().__init__()
        self.initial_alignment = initial_alignment
        self.iterations, self.smoothing_sigma = iterations, smoothing_sigma

    def register(self, fixed: Array, moving: Array) -> Array:
        ndim, count = fixed.ndim, limit_levels(fixed.shape, len(self.iterations))
        linear = torch.from_numpy(self.initial_alignment.register(fixed, moving))[None]
        warped = ops.warp(torch.from_numpy(moving)[None, None], linear)
        target = torch.from_numpy(fixed)[None, None]
        source = torch.from_numpy(match_histogram(warped[0, 0].numpy(), fixed))[None, None]
        u = torch.zeros(1, ndim, *[1] * ndim)
        for level in reversed(range(count)):
            shape = [max(n >> level, 1) for n in fixed.shape]
            a, b = (ops.resize(image, shape)[0, 0].numpy() for image in (target, source))
            u = self.run_demons(a, b, ops.resize_field(u, shape), self.iterations[-1 - level])
        return ops.compose(u, linear)[0].numpy()

    def run_demons(self, fixed: Array, moving: Array, u: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the displacement (1, D, *spatial) after ``steps`` iterations from ``u``."""
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(steps)
        demons.SetStandardDeviations(self.smoothing_sigma)
        grid = ImageGrid(fixed.shape, VOXEL_AFFINE)
        initial = grid.to_vector_image(u[0].double().numpy())
        field = demons.Execute(to_itk_image(fixed), to_itk_image(moving), initial)
        return torch.from_numpy(np.ascontiguousarray(vectors_from_image(field), np.float32))[None]


def match_histogram(moving: Array, fixed: Array) -> Array:
    """Match the histogram of the moving image to the fixed one's, above their means."""
    options = {"numberOfHistogramLevels": 128, "numberOfMatchPoints": 10}
    matched = sitk.HistogramMatching(to_itk_image(moving), to_itk_image(fixed), **options)
    return np.ascontiguousarray(vectors_from_image(matched), np.float32)
