"""The grid on which a model registers a user's images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.preprocessing.functional import compute_centered_grid
from regnet_lab.data.preprocessing.grids import compute_spacing_ratio
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.utils.voxel_budget import enlarge_voxels

THICK_SLICE_RATIO = 2.0  # of largest to smallest spacing; such images are not resampled obliquely
OBLIQUE_COSINE = 0.01  # cosine between array and world axes below which they count as parallel


def get_grid(case: LoadedCase) -> ImageGrid:
    """Return the grid of an image."""
    return ImageGrid(case.image.shape, case.affine)


def reorient_to_ras(grid: ImageGrid) -> ImageGrid:
    """Permute and flip array axes so that they run as nearly as possible to right, front, top."""
    orientation = nibabel.io_orientation(grid.affine)
    affine = grid.affine @ nibabel.orientations.inv_ornt_aff(orientation, grid.shape)
    return ImageGrid(tuple(grid.shape[axis] for axis in np.argsort(orientation[:, 0])), affine)


def is_oblique(grid: ImageGrid) -> bool:
    """Check whether a grid nearest RAS is oblique in the world and has no thick slices."""
    cosines = grid.affine[:3, :3] / grid.spacing - np.eye(3)
    thin = grid.spacing.max() < THICK_SLICE_RATIO * grid.spacing.min()
    return bool(thin and np.abs(cosines).max() > OBLIQUE_COSINE)


def compute_world_grid(grid: ImageGrid, valid: NDArray[np.bool_]) -> ImageGrid:
    """Compute the smallest isotropic grid along the world axes that contains the valid voxels.

    Its spacing is the finest of ``grid``, which must be 3D.
    """
    lines = valid.any(2)
    ends = valid.argmax(2), valid.shape[2] - 1 - valid[..., ::-1].argmax(2)
    voxels = [np.column_stack([*np.nonzero(lines), end[lines]]) for end in ends]
    points = coordinates.apply_affine(grid.affine, np.concatenate(voxels))
    spacing = grid.spacing.min()
    low, high = points.min(0), points.max(0)
    shape = np.rint((high - low) / spacing).astype(int) + 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high - (shape - 1) * spacing) / 2
    return ImageGrid(tuple(shape.tolist()), affine)


@dataclass(frozen=True)
class InferenceGrid:
    """Rule for the grid on which a model works, centered on the fixed image.

    Args:
        shape: Smallest number of voxels along the first axes; the grid grows to cover the image.
            None: as many as cover it.
        spacing: mm per voxel, one number or one for each of the first axes; None: that of the
            fixed image.
        orientation: Of 3D grids.  ``world``: along the axes of the world, over the valid voxels
            of the fixed image, so that the model sees the same anatomy however the image is
            stored; thick-slice images are treated as with ``ras``.  ``ras``: the array axes of
            the fixed image, permuted and flipped to nearest RAS.  ``image``: as stored.
        max_voxels: Largest number of voxels where no spacing is given; it is then coarsened.
    """

    shape: Sequence[int] | None = None
    spacing: float | Sequence[float] | None = None
    orientation: str = "ras"
    max_voxels: int | None = None

    def compute_grid(self, fixed: LoadedCase, valid: NDArray[np.bool_] | None = None) -> ImageGrid:
        """Compute the grid for a fixed image; ``valid``: its voxels that are no padding, or all."""
        if self.orientation not in ("world", "ras", "image"):
            raise UserError(f"grid.orientation={self.orientation} must be world, ras or image.")
        grid = get_grid(fixed)
        if self.orientation == "image" or grid.ndim != 3:
            return self._resample(grid)
        ras = reorient_to_ras(grid)
        if self.orientation == "world" and is_oblique(ras):
            valid = np.ones(grid.shape, bool) if valid is None else valid
            return self._resample(compute_world_grid(grid, valid))
        return self._resample(ras)

    def _resample(self, grid: ImageGrid) -> ImageGrid:
        """Compute the grid with the required spacing and shape about the center of ``grid``."""
        ratio = compute_spacing_ratio(self._choose_spacing(grid), grid.spacing)
        covering, _ = compute_centered_grid(grid.shape, ratio)
        required = [*(self.shape or ()), *covering[len(self.shape or ()) :]]
        shape = np.maximum(required, covering).tolist()
        shape, matrix = compute_centered_grid(grid.shape, ratio, shape)
        return ImageGrid(shape, grid.affine @ coordinates.embed_in_3d(matrix))

    def _choose_spacing(self, grid: ImageGrid) -> list[float]:
        """Return the required spacing, or the finest with at most ``max_voxels`` voxels."""
        if self.spacing is not None:
            spacing = np.ravel(self.spacing).tolist()
            spacing = spacing * grid.ndim if len(spacing) == 1 else spacing
            return [*spacing, *grid.spacing.tolist()[len(spacing) :]]
        finest = enlarge_voxels(
            grid.spacing.min(),
            lambda size: math.prod(grid.shape * grid.spacing / np.maximum(grid.spacing, size)),
            self.max_voxels or math.inf,
        )
        return np.maximum(grid.spacing, finest).tolist()
