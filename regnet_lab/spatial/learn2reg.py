"""Learn2Reg's displacements: (*spatial, D), voxels, y = x + u(x) in indices of the two images.

Between images of one grid, as the challenge has them, u is the displacement in voxels; otherwise
x are indices of the fixed and y indices of the moving image.
"""

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame, Vectors, components


def voxels(field: sitk.Image, moving: Frame) -> Vectors:
    """T(x) - x, mm LPS+, as (*spatial, D) float32 between indices."""
    fixed = Frame.of(field)
    x = np.indices(fixed.shape).reshape(fixed.ndim, -1).T
    y = coordinates.transform(fixed.lps, x) + components(field).reshape(fixed.ndim, -1).T
    u = coordinates.transform(np.linalg.inv(moving.lps), y) - x
    return u.reshape(*fixed.shape, fixed.ndim).astype(np.float32)


def write(path: Path, field: sitk.Image, moving: Frame) -> None:
    """Write a field as ``.npz`` or as 4-D NIfTI, by the name."""
    u = voxels(field, moving)
    if path.suffix == ".npz":
        np.savez_compressed(path, u)
    else:
        nibabel.save(nibabel.Nifti1Image(u, np.eye(4)), path)


def read(path: Path, u: Vectors, fixed: Frame | None, moving: Frame | None) -> sitk.Image:
    """A displacement (*spatial, D), or (D, *spatial), as T(x) - x in mm LPS+.

    Raises:
        UserError: It does not fit the fixed image, or an image is not known.
    """
    if fixed is None or moving is None:
        raise UserError(
            f"{path}: displacements in voxels need both images: fixed=<file> image=<file>."
        )
    if u.shape == (fixed.ndim, *fixed.shape):
        u = np.moveaxis(u, 0, -1)
    if u.shape != (*fixed.shape, fixed.ndim):
        raise UserError(
            f"{path}: has the shape {u.shape}, but the fixed image has {fixed.shape} voxels."
        )
    x = np.indices(fixed.shape).reshape(fixed.ndim, -1).T
    y = coordinates.transform(moving.lps, x + u.reshape(-1, fixed.ndim).astype(np.float64))
    moved = y - coordinates.transform(fixed.lps, x)
    return fixed.vectors(moved.T.reshape(fixed.ndim, *fixed.shape))
