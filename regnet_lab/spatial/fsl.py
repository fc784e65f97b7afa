"""FSL's coordinates: voxels times their size, x running from the right where the header is RAS.

A relative warp of FNIRT lies on the reference (our fixed) grid, 4-D, with intent code 2006, and
holds y' - x' in these coordinates, x' in the reference and y' in the input (our moving) image.
``applywarp --rel`` takes it; ``flirt -applyxfm`` takes the matrix, which goes from the input to
the reference.
"""

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame, components, matrix_transform

INTENT = 2006  # FSL_FNIRT_DISPLACEMENT_FIELD
INTENTS = range(2006, 2010)  # its fields and coefficients of splines


def scaled(frame: Frame) -> coordinates.Matrix:
    """(4, 4) from voxel indices to FSL's millimetres.

    Raises:
        UserError: The image is not 3D.
    """
    if frame.ndim != 3:
        raise UserError("FSL has transforms of 3D images only: leave fsl out of formats.")
    matrix = np.diag([*coordinates.spacing(frame.affine), 1.0])
    if np.linalg.det(frame.affine[:3, :3]) > 0:
        matrix[0] *= -1
        matrix[0, 3] = (frame.shape[0] - 1) * -matrix[0, 0]
    return matrix


def to_fsl(frame: Frame) -> coordinates.Matrix:
    """(4, 4) from RAS+ mm to FSL's millimetres of an image."""
    return scaled(frame) @ np.linalg.inv(frame.affine)


def places(frame: Frame) -> np.ndarray:
    """(N, 3) voxel indices of a frame."""
    return np.indices(frame.shape).reshape(3, -1).T


def write_warp(path: Path, field: sitk.Image, moving: Frame) -> None:
    """Write T(x) - x, mm LPS+ on the fixed grid, as a relative warp."""
    fixed = Frame.of(field)
    x = coordinates.transform(fixed.affine, places(fixed))
    y = x + coordinates.flip_points(components(field).reshape(3, -1).T)
    warp = coordinates.transform(to_fsl(moving), y) - coordinates.transform(to_fsl(fixed), x)
    image = coordinates.to_nifti(warp.reshape(*fixed.shape, 3).astype(np.float32), fixed.affine)
    image.header.set_intent(INTENT, (), "", allow_unknown=True)
    nibabel.save(image, path)


def read_warp(path: Path, image: nibabel.Nifti1Image, moving: Frame | None) -> sitk.Image:
    """A relative warp as T(x) - x, mm LPS+ on its own grid.

    Raises:
        UserError: It holds coefficients of splines, or the moving image is not known.
    """
    code = int(image.header["intent_code"])
    if code != INTENT:
        raise UserError(f"{path}: holds FSL's spline coefficients; make a field by fnirtfileutils.")
    if moving is None:
        raise UserError(f"{path}: FSL's warps need the image they move; give it as image=<file>.")
    fixed = Frame(image.shape[:3], np.asarray(image.affine, np.float64))
    x = coordinates.transform(fixed.affine, places(fixed))
    warp = np.asarray(image.dataobj, np.float64).reshape(-1, 3)
    there = coordinates.transform(to_fsl(fixed), x) + warp
    y = coordinates.transform(np.linalg.inv(to_fsl(moving)), there)
    moved = coordinates.flip_points(y - x).T.reshape(3, *fixed.shape)
    return fixed.vectors(moved)


def write_matrix(path: Path, matrix: coordinates.Matrix, fixed: Frame, moving: Frame) -> None:
    """Write the map of the fixed to the moving world, RAS+, as FLIRT's of the other way round."""
    flirt = to_fsl(fixed) @ np.linalg.inv(matrix) @ np.linalg.inv(to_fsl(moving))
    np.savetxt(path, flirt, "%.10f")


def read_matrix(path: Path, fixed: Frame | None, moving: Frame | None) -> sitk.Transform:
    """FLIRT's matrix as a transform from the fixed to the moving world.

    Raises:
        UserError: It is no matrix (4, 4), or an image is not known.
    """
    try:
        flirt = np.loadtxt(path).reshape(4, 4)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is neither ITK's nor FLIRT's matrix; replace it.") from error
    if fixed is None or moving is None:
        raise UserError(f"{path}: FLIRT's matrices need both images: fixed=<file> image=<file>.")
    matrix = np.linalg.inv(np.linalg.inv(to_fsl(fixed)) @ flirt @ to_fsl(moving))
    return matrix_transform(matrix, 3)
