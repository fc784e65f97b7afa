"""SimpleITK: an affine map by mutual information, and diffeomorphic demons after it.

Vercauteren, Pennec, Perchant, Ayache: Diffeomorphic demons: efficient non-parametric image
registration, NeuroImage 45 (2009).
"""

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab import ops
from regnet_lab.models.classical.base import Array, Classical, frame, image, levels
from regnet_lab.spatial.image_grid import components, flatten, matrix_transform
from regnet_lab.spatial.linear_alignment import Linear, Sides


class AffineMI(Classical):
    """The affine map with the most of Mattes' mutual information, from several starts.

    Args:
        align: Finds a linear map between two images and their masks.
        masked: Look only at what is brighter than the darkest voxel of each image.
    """

    def __init__(self, align: Linear, masked: bool = True) -> None:
        super().__init__(masked)
        self.align = align

    def register(self, fixed: Array, moving: Array) -> Array:
        masks = self.masks(fixed, moving) or []
        sides = Sides(image(fixed), image(moving), *(image(m.astype(np.float32)) for m in masks))
        linear = matrix_transform(self.align(sides), fixed.ndim)
        return components(flatten(linear, frame(fixed.shape)))


class Demons(Classical):
    """Diffeomorphic demons, coarse to fine, from where an affine map leads.

    The histogram of the moving image is matched to that of the fixed one, for demons compare
    intensities.

    Args:
        first: What registers before.
        iterations: At each level, coarse to fine; each is half the next.
        deviation: Of the Gaussian that smoothes the displacement after every step, in voxels of
            the level.
    """

    def __init__(self, first: Classical, iterations: list[int], deviation: float = 1.5) -> None:
        super().__init__()
        self.first, self.iterations, self.deviation = first, iterations, deviation

    def register(self, fixed: Array, moving: Array) -> Array:
        ndim, count = fixed.ndim, levels(fixed.shape, len(self.iterations))
        linear = torch.from_numpy(self.first.register(fixed, moving))[None]
        warped = ops.warp(torch.from_numpy(moving)[None, None], linear)
        target = torch.from_numpy(fixed)[None, None]
        source = torch.from_numpy(matched(warped[0, 0].numpy(), fixed))[None, None]
        u = torch.zeros(1, ndim, *[1] * ndim)
        for level in reversed(range(count)):
            shape = [max(n >> level, 1) for n in fixed.shape]
            a, b = (ops.resize(side, shape)[0, 0].numpy() for side in (target, source))
            u = self.refined(a, b, ops.resize_field(u, shape), self.iterations[-1 - level])
        return ops.compose(u, linear)[0].numpy()

    def refined(self, fixed: Array, moving: Array, u: torch.Tensor, steps: int) -> torch.Tensor:
        """The displacement (1, D, *spatial) after so many steps."""
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(steps)
        demons.SetStandardDeviations(self.deviation)
        begun = frame(fixed.shape).vectors(u[0].double().numpy())
        found = demons.Execute(image(fixed), image(moving), begun)
        return torch.from_numpy(np.ascontiguousarray(components(found), np.float32))[None]


def matched(moving: Array, fixed: Array) -> Array:
    """The moving image with the fixed one's histogram above their means."""
    found = sitk.HistogramMatching(
        image(moving), image(fixed), numberOfHistogramLevels=128, numberOfMatchPoints=10
    )
    return np.ascontiguousarray(components(found), np.float32)
