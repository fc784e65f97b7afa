"""What a registration found, on the fixed image's own grid and between the two worlds."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab import ops
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame, Vectors, field_transform, matrix_transform


@dataclass(frozen=True)
class Deformation:
    """The map y = M (x + u(x)) of the fixed image's world to the moving image's.

    Args:
        fixed: Frame of the fixed image.
        moving: Frame of the moving image.
        matrix: M, (4, 4), RAS+ mm.
        u: (D, *fixed.shape) float32 in voxels of the fixed frame.
    """

    fixed: Frame
    moving: Frame
    matrix: coordinates.Matrix
    u: Vectors

    @cached_property
    def v(self) -> Vectors:
        """The inverse of id + u, on the same grid in the same voxels."""
        field = torch.from_numpy(self.u)[None]
        return ops.invert(field, tolerance=1e-3)[0].numpy()

    @cached_property
    def residual(self) -> Vectors:
        """(*fixed.shape) mm by which the way there and back misses each voxel.

        x - (id + v)(x + u(x)); NaN where x + u(x) leaves the grid, for there v is not known.
        """
        u, v = (torch.from_numpy(field)[None] for field in (self.u, self.v))
        missed = np.tensordot(self.fixed.lps[:-1, :-1], ops.compose(u, v)[0].numpy(), 1)
        there = (ops.identity_grid(u.shape[2:], u) + u)[0].numpy()
        last = np.reshape(self.fixed.shape, (-1, *[1] * self.fixed.ndim)) - 1
        inside = ((there >= 0) & (there <= last)).all(0)
        return np.where(inside, np.linalg.norm(missed, axis=0), np.nan)

    @cached_property
    def forward(self) -> sitk.CompositeTransform:
        """From the fixed to the moving world: resamples the moving image onto the fixed one."""
        linear = matrix_transform(self.matrix, self.fixed.ndim)
        return sitk.CompositeTransform([linear, field_transform(self.fixed.millimetres(self.u))])

    @cached_property
    def backward(self) -> sitk.CompositeTransform:
        """From the moving to the fixed world, (id + v) o M^-1."""
        linear = matrix_transform(np.linalg.inv(self.matrix), self.fixed.ndim)
        return sitk.CompositeTransform([field_transform(self.fixed.millimetres(self.v)), linear])
