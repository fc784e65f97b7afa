"""Displacement files of Learn2Reg: (*spatial, D) in voxels, y = x + u(x).

x are voxel indices of the fixed and y of the moving image.  Where both have one grid, as in the
challenge, u is the displacement in voxels.
"""

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid, Vectors, vectors_from_image


def field_to_displacement(field: sitk.Image, moving: ImageGrid) -> Vectors:
    """Convert T(x) - x in LPS+ mm to (*spatial, D) float32 between voxel indices."""
    fixed = ImageGrid.from_sitk(field)
    x = fixed.list_voxels()
    vectors = vectors_from_image(field).reshape(fixed.ndim, -1).T
    y = coordinates.apply_affine(fixed.voxel_to_lps, x) + vectors
    u = coordinates.apply_affine(np.linalg.inv(moving.voxel_to_lps), y) - x
    return u.reshape(*fixed.shape, fixed.ndim).astype(np.float32)


def write_displacement(path: Path, field: sitk.Image, moving: ImageGrid) -> None:
    """Write a field as ``.npz`` or 4D NIfTI, depending on the file name."""
    u = field_to_displacement(field, moving)
    if path.suffix == ".npz":
        np.savez_compressed(path, u)
    else:
        nibabel.save(nibabel.Nifti1Image(u, np.eye(4)), path)


def displacement_to_field(
    path: Path, u: Vectors, fixed: ImageGrid | None, moving: ImageGrid | None
) -> sitk.Image:
    """Convert a displacement (*spatial, D) or (D, *spatial) to T(x) - x in LPS+ mm.

    ``path``, its file, is for error messages.
    """
    if fixed is None or moving is None:
        raise UserError(
            f"{path}: a displacement in voxels needs both images: fixed=<file> image=<file>."
        )
    if u.shape == (fixed.ndim, *fixed.shape):
        u = np.moveaxis(u, 0, -1)
    if u.shape != (*fixed.shape, fixed.ndim):
        raise UserError(
            f"{path}: has the shape {u.shape}, but the fixed image has {fixed.shape} voxels."
        )
    x = fixed.list_voxels()
    y = coordinates.apply_affine(moving.voxel_to_lps, x + u.reshape(-1, fixed.ndim).astype(float))
    vectors = y - coordinates.apply_affine(fixed.voxel_to_lps, x)
    return fixed.to_vector_image(vectors.T.reshape(fixed.ndim, *fixed.shape))
