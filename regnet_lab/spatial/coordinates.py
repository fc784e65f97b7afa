"""World coordinates: where voxels lie in millimetres, and between which conventions that is said.

An affine A (4, 4) takes homogeneous voxel indices to millimetres, RAS+ (x to the right, y to the
front, z up), as nibabel has it.  A 2D image is a plane of that space: it uses columns 0, 1 and 3,
and column 2 is the way out of the plane.  ITK, SimpleITK and elastix speak LPS+, which has x and y
reversed.  Matrices are float64, points (N, D).
"""

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from regnet_lab.errors import UserError

Matrix = NDArray[np.floating]
Points = NDArray

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
SINGULAR = 1e-6  # determinant of the unit directions of axes below which they span no space


def spacing(affine: Matrix, ndim: int = 3) -> NDArray[np.float64]:
    """Millimetres per voxel along each of the first ``ndim`` array axes: |A[:3, k]|."""
    return np.linalg.norm(affine[:3, :ndim], axis=0)


def is_regular(affine: Matrix) -> bool:
    """Whether an affine is finite and can be inverted, at whatever spacing."""
    size = spacing(affine)
    volume = abs(np.linalg.det(affine[:3, :3] / np.maximum(size, 1e-300)))
    return bool(np.isfinite(affine).all() and volume > SINGULAR)


def embedded(matrix: Matrix) -> Matrix:
    """A homogeneous map (D+1, D+1) as one of space (4, 4), the identity along further axes."""
    ndim = len(matrix) - 1
    kept = [*range(ndim), 3]
    result = np.eye(4)
    result[np.ix_(kept, kept)] = matrix
    return result


def in_plane(matrix: Matrix, ndim: int) -> Matrix:
    """Rows and columns of a (4, 4) map that the first ``ndim`` axes use: (ndim+1, ndim+1)."""
    kept = [*range(ndim), 3]
    return matrix[np.ix_(kept, kept)]


def voxel_to_voxel(fixed: Matrix, moving: Matrix, ndim: int = 3) -> Matrix:
    """Voxels of one image to those of another at the same place: A_moving^-1 A_fixed.

    Between planes (``ndim`` 2) a point goes to its orthogonal projection onto the moving one.

    Args:
        fixed: (4, 4) affine of the image whose voxels come in.
        moving: (4, 4) affine of the image whose voxels come out.
        ndim: Axes of both arrays.

    Returns:
        (ndim+1, ndim+1).

    Raises:
        UserError: The planes of two 2D images are perpendicular.
    """
    matrix = np.eye(ndim + 1)
    inverse = np.linalg.pinv(moving[:3, :ndim])
    matrix[:-1, :-1] = inverse @ fixed[:3, :ndim]
    matrix[:-1, -1] = inverse @ (fixed[:3, 3] - moving[:3, 3])
    kept = abs(np.linalg.det(matrix)) * spacing(moving, ndim).prod() / spacing(fixed, ndim).prod()
    if kept < SINGULAR:
        raise UserError(
            "The planes of two 2D images are perpendicular: one cannot be resampled to the other."
        )
    return matrix


def transform(matrix: Matrix, points: Points) -> NDArray[np.float64]:
    """A homogeneous map (D+1, D+1) of points (N, D)."""
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def voxel_to_world(affine: Matrix, points: Points) -> NDArray[np.float64]:
    """Millimetres RAS+ (N, 3) of voxel coordinates (N, D)."""
    ndim = points.shape[1]
    return points @ affine[:3, :ndim].T + affine[:3, 3]


def world_to_voxel(affine: Matrix, points: Points) -> NDArray[np.float64]:
    """Voxel coordinates (N, D) of points (N, D) in millimetres RAS+; in 2D their z is 0, and what
    lies beside the plane goes to its orthogonal projection.
    """
    ndim = points.shape[1]
    spatial = np.pad(points, ((0, 0), (0, 3 - ndim)))
    return (spatial - affine[:3, 3]) @ np.linalg.pinv(affine[:3, :ndim]).T


def flip_points(points: Points) -> NDArray[np.float64]:
    """Points (N, D) in LPS+ given in RAS+, or back: x and y change sign."""
    return points * RAS_TO_LPS.diagonal()[: points.shape[1]]


def flip_matrix(matrix: Matrix) -> Matrix:
    """A world-to-world map (4, 4) of RAS+ points as one of LPS+ points, or back: F M F."""
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> Matrix:
    """Affine of what SimpleITK holds or is about to read, a 2D image lying in the plane z = 0.

    A = F [R diag(s), o; 0 1] with ITK's direction R, spacing s and origin o, all LPS+.
    """
    ndim = min(image.GetDimension(), 3)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:ndim, :ndim]
    lps = np.eye(ndim + 1)
    lps[:-1, :-1] = direction * image.GetSpacing()[:ndim]
    lps[:-1, -1] = image.GetOrigin()[:ndim]
    return RAS_TO_LPS @ embedded(lps)


def to_nifti(array: NDArray, affine: Matrix) -> nibabel.Nifti1Image:
    """An array (x, y), (x, y, z) or with further axes as a NIfTI of its own dtype at its place.

    ``affine`` (4, 4) to millimetres, RAS+, is set as both sform and qform.
    """
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    return image


def to_image(array: NDArray, affine: Matrix) -> sitk.Image:
    """An array (*spatial), axes in ITK's index order, as a SimpleITK image at its place.

    Raises:
        UserError: A 2D array does not lie in the world's x-y plane.
    """
    ndim = array.ndim
    size = spacing(affine, ndim)
    lps = in_plane(RAS_TO_LPS @ affine, ndim)
    direction = lps[:-1, :-1] / size
    if not np.isclose(abs(np.linalg.norm(direction, axis=0)), 1).all():
        raise UserError(
            "A 2D image outside the world's x-y plane has no place in ITK: write it as one slice."
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(size.tolist())
    image.SetOrigin(lps[:-1, -1].tolist())
    image.SetDirection(direction.ravel().tolist())
    return image
