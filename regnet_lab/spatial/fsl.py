"""FSL coordinates and transform files.

FSL's coordinates are voxel indices times the voxel size of the NIfTI header, whatever its unit,
with x reversed where the header's affine has a positive determinant.  A relative warp of FNIRT lies
on the reference (our fixed) grid, is 4D with intent code 2006 and the geometry of the reference's
header, and holds y' - x' in these coordinates, x' in the reference and y' in the input (our moving)
image; ``applywarp --rel`` takes it.  FLIRT's matrix maps the input to the reference;
``flirt -applyxfm`` takes it.
"""

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates, nifti
from regnet_lab.spatial.image_grid import ImageGrid, matrix_to_transform, vectors_from_image

DISPLACEMENT_INTENT = 2006  # FSL_FNIRT_DISPLACEMENT_FIELD
WARP_INTENTS = range(2006, 2010)  # displacement fields and spline coefficients


def _get_header(grid: ImageGrid) -> nibabel.Nifti1Header:
    """Return the header of an image, or that of a file written here."""
    return grid.header or nifti.make_header(grid.affine)


def world_to_fsl(grid: ImageGrid) -> coordinates.Matrix:
    """Compute the matrix (4, 4) from RAS+ mm to the FSL coordinates of a 3D image."""
    if grid.ndim != 3:
        raise UserError("FSL transforms exist for 3D images only: remove fsl from the formats.")
    voxel_to_fsl = nifti.compute_voxel_to_fsl(_get_header(grid), grid.shape[0])
    return voxel_to_fsl @ np.linalg.inv(grid.affine)


def write_warp(path: Path, field: sitk.Image, fixed: ImageGrid, moving: ImageGrid) -> None:
    """Write T(x) - x, in LPS+ mm on the fixed grid, as a relative warp."""
    x = coordinates.apply_affine(fixed.affine, fixed.list_voxels())
    y = x + coordinates.flip_points(vectors_from_image(field).reshape(3, -1).T)
    x_fsl, y_fsl = (
        coordinates.apply_affine(world_to_fsl(grid), points)
        for grid, points in ((fixed, x), (moving, y))
    )
    array = (y_fsl - x_fsl).reshape(*fixed.shape, 3).astype(np.float32)
    image = nibabel.Nifti1Image(array, None)
    nifti.copy_geometry(_get_header(fixed), image.header)
    image.header.set_intent(DISPLACEMENT_INTENT, (), "", allow_unknown=True)
    nibabel.save(image, path)


def read_warp(path: Path, image: nibabel.Nifti1Image, moving: ImageGrid | None) -> sitk.Image:
    """Convert a relative warp to T(x) - x in LPS+ mm on its own grid."""
    if int(image.header["intent_code"]) != DISPLACEMENT_INTENT:
        raise UserError(
            f"{path}: holds FSL spline coefficients; convert it to a displacement field with "
            "fnirtfileutils."
        )
    if moving is None:
        raise UserError(f"{path}: an FSL warp needs the moving image; give it as image=<file>.")
    affine = nifti.read_affine(path, image)
    fixed = ImageGrid(image.shape[:3], affine, nifti.read_header(path))
    x = coordinates.apply_affine(fixed.affine, fixed.list_voxels())
    warp = np.asarray(image.dataobj, np.float64).reshape(-1, 3)
    y_fsl = coordinates.apply_affine(world_to_fsl(fixed), x) + warp
    y = coordinates.apply_affine(np.linalg.inv(world_to_fsl(moving)), y_fsl)
    return fixed.to_vector_image(coordinates.flip_points(y - x).T.reshape(3, *fixed.shape))


def write_matrix(
    path: Path, matrix: coordinates.Matrix, fixed: ImageGrid, moving: ImageGrid
) -> None:
    """Write the map from fixed to moving world, RAS+, as FLIRT's matrix, which is its inverse."""
    flirt = world_to_fsl(fixed) @ np.linalg.inv(matrix) @ np.linalg.inv(world_to_fsl(moving))
    np.savetxt(path, flirt, "%.10f")


def read_matrix(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None) -> sitk.Transform:
    """Read FLIRT's matrix as a transform from the fixed to the moving world."""
    try:
        flirt = np.loadtxt(path).reshape(4, 4)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a matrix of ITK or FLIRT; replace it.") from error
    if fixed is None or moving is None:
        raise UserError(f"{path}: a FLIRT matrix needs both images: fixed=<file> image=<file>.")
    matrix = np.linalg.inv(np.linalg.inv(world_to_fsl(fixed)) @ flirt @ world_to_fsl(moving))
    return matrix_to_transform(matrix, 3)
