"""The result of a registration: a linear map and a displacement field between two images."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
import torch

from regnet_lab import ops
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import (
    ImageGrid,
    Vectors,
    field_to_transform,
    matrix_to_transform,
)


@dataclass(frozen=True)
class Deformation:
    """The map y = M (x + u(x)) from the world of the fixed image to that of the moving image.

    Args:
        matrix: M, (4, 4), RAS+ mm.
        u: (D, *fixed.shape) float32 in voxels of the fixed grid.
    """

    fixed: ImageGrid
    moving: ImageGrid
    matrix: coordinates.Matrix
    u: Vectors

    @cached_property
    def inverse_u(self) -> Vectors:
        """Return the inverse v of id + u, on the fixed grid in its voxels."""
        field = torch.from_numpy(self.u)[None]
        return ops.invert(field, tolerance=1e-3)[0].numpy()

    @cached_property
    def inverse_error(self) -> Vectors:
        """Return |x - (id + v)(x + u(x))| in mm at every voxel, (*fixed.shape).

        NaN where x + u(x) lies outside the grid, where v is not known.
        """
        u, v = (torch.from_numpy(field)[None] for field in (self.u, self.inverse_u))
        error = np.tensordot(self.fixed.voxel_to_lps[:-1, :-1], ops.compose(u, v)[0].numpy(), 1)
        mapped = (ops.identity_grid(u.shape[2:], u) + u)[0].numpy()
        last = np.reshape(self.fixed.shape, (-1, *[1] * self.fixed.ndim)) - 1
        inside = ((mapped >= 0) & (mapped <= last)).all(0)
        return np.where(inside, np.linalg.norm(error, axis=0), np.nan)

    @cached_property
    def forward(self) -> sitk.CompositeTransform:
        """Return the transform from fixed to moving world, which resamples the moving image."""
        linear = matrix_to_transform(self.matrix, self.fixed.ndim)
        displacement = field_to_transform(self.fixed.displacement_to_mm(self.u))
        return sitk.CompositeTransform([linear, displacement])

    @cached_property
    def backward(self) -> sitk.CompositeTransform:
        """Return the transform from moving to fixed world, (id + v) o M^-1."""
        linear = matrix_to_transform(np.linalg.inv(self.matrix), self.fixed.ndim)
        displacement = field_to_transform(self.fixed.displacement_to_mm(self.inverse_u))
        return sitk.CompositeTransform([displacement, linear])
