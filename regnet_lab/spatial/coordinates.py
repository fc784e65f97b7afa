"""World coordinates and conversions between their conventions.

An affine A (4, 4) maps homogeneous voxel indices to RAS+ mm (x to the right, y to the front, z up),
as in nibabel.  A 2D image is a plane in 3D: it uses columns 0, 1 and 3, and column 2 points out of
the plane.  ITK, SimpleITK and elastix use LPS+, with x and y reversed.  Matrices are float64,
points are (N, D).
"""

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regnet_lab.errors import UserError

Matrix = NDArray[np.floating]
Points = NDArray

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
MAX_SHEAR = 1e-3  # largest cosine between axes that count as perpendicular
MIN_DETERMINANT = 1e-6  # of the axes' unit vectors; below it an affine counts as singular


def affine_to_spacing(affine: Matrix, ndim: int = 3) -> NDArray[np.float64]:
    """Compute the spacing in mm along each of the first ``ndim`` array axes: |A[:3, k]|.

    >>> affine_to_spacing(np.diag([-1.0, 1.0, 2.5, 1.0])).tolist()
    [1.0, 1.0, 2.5]
    """
    return np.linalg.norm(affine[:3, :ndim], axis=0)


def is_invertible(affine: Matrix) -> bool:
    """Check whether an affine is finite and invertible, at any spacing."""
    size = affine_to_spacing(affine)
    volume = abs(np.linalg.det(affine[:3, :3] / np.maximum(size, 1e-300)))
    return bool(np.isfinite(affine).all() and volume > MIN_DETERMINANT)


def is_orthogonal(affine: Matrix, ndim: int = 3) -> bool:
    """Check whether the first ``ndim`` axes are perpendicular, up to the rounding of headers."""
    axes = affine[:3, :ndim] / affine_to_spacing(affine, ndim)
    return bool(np.abs(axes.T @ axes - np.eye(ndim)).max() <= MAX_SHEAR)


def lies_in_xy_plane(affine: Matrix) -> bool:
    """Check whether the first two array axes are parallel to the x-y plane of the world.

    >>> lies_in_xy_plane(np.eye(4)), lies_in_xy_plane(np.eye(4)[[2, 0, 1, 3]])
    (True, False)
    """
    return bool(np.abs(affine[2, :2]).max() <= 1e-4 * affine_to_spacing(affine, 2).max())


def embed_in_3d(matrix: Matrix) -> Matrix:
    """Embed a homogeneous matrix (D+1, D+1) in (4, 4), the identity along further axes."""
    ndim = len(matrix) - 1
    axes = [*range(ndim), 3]
    result = np.eye(4)
    result[np.ix_(axes, axes)] = matrix
    return result


def restrict_to_axes(matrix: Matrix, ndim: int) -> Matrix:
    """Return the part (ndim+1, ndim+1) of a (4, 4) matrix that acts on the first ``ndim`` axes."""
    axes = [*range(ndim), 3]
    return matrix[np.ix_(axes, axes)]


def voxel_to_voxel_matrix(fixed: Matrix, moving: Matrix, ndim: int = 3) -> Matrix:
    """Compute the matrix A_moving^-1 A_fixed from voxels of one image to those of another.

    Both affines are (4, 4), the result is (ndim+1, ndim+1).  Between planes (``ndim`` 2) points are
    projected orthogonally onto the moving plane, to which the fixed one must not be perpendicular.
    """
    matrix = np.eye(ndim + 1)
    inverse = np.linalg.pinv(moving[:3, :ndim])
    matrix[:-1, :-1] = inverse @ fixed[:3, :ndim]
    matrix[:-1, -1] = inverse @ (fixed[:3, 3] - moving[:3, 3])
    spacing_ratio = affine_to_spacing(moving, ndim).prod(), affine_to_spacing(fixed, ndim).prod()
    if abs(np.linalg.det(matrix)) * spacing_ratio[0] / spacing_ratio[1] < MIN_DETERMINANT:
        raise UserError(
            "The planes of two 2D images are perpendicular: one cannot be resampled to the other."
        )
    return matrix


def apply_affine(matrix: Matrix, points: Points) -> NDArray[np.float64]:
    """Apply a homogeneous matrix (D+1, D+1) to points (N, D)."""
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def voxel_to_world(affine: Matrix, points: Points) -> NDArray[np.float64]:
    """Convert voxel coordinates (N, D) to RAS+ mm (N, 3).

    >>> voxel_to_world(np.diag([2.0, 2.0, 3.0, 1.0]), np.array([[1, 1, 1]])).tolist()
    [[2.0, 2.0, 3.0]]
    """
    ndim = points.shape[1]
    return points @ affine[:3, :ndim].T + affine[:3, 3]


def world_to_voxel(affine: Matrix, points: Points) -> NDArray[np.float64]:
    """Convert points (N, D) in RAS+ mm to voxel coordinates (N, D).

    2D points have z = 0 and are projected orthogonally onto the image plane.
    """
    ndim = points.shape[1]
    spatial = np.pad(points, ((0, 0), (0, 3 - ndim)))
    return (spatial - affine[:3, 3]) @ np.linalg.pinv(affine[:3, :ndim]).T


def flip_points(points: Points) -> NDArray[np.float64]:
    """Convert points (N, D) between RAS+ and LPS+ by changing the signs of x and y."""
    return points * RAS_TO_LPS.diagonal()[: points.shape[1]]


def flip_matrix(matrix: Matrix) -> Matrix:
    """Convert a world-to-world matrix (4, 4) between RAS+ and LPS+: F M F."""
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


def affine_from_sitk(image: sitk.Image | sitk.ImageFileReader) -> Matrix:
    """Return the affine of a SimpleITK image or an opened reader; 2D images lie in the plane z = 0.

    A = F [R diag(s), o; 0 1] with ITK's direction R, spacing s and origin o, all LPS+.
    """
    ndim = min(image.GetDimension(), 3)
    direction = np.reshape(image.GetDirection(), (image.GetDimension(), -1))[:ndim, :ndim]
    lps = np.eye(ndim + 1)
    lps[:-1, :-1] = direction * image.GetSpacing()[:ndim]
    lps[:-1, -1] = image.GetOrigin()[:ndim]
    return RAS_TO_LPS @ embed_in_3d(lps)


def array_to_nifti(array: NDArray, affine: Matrix) -> nibabel.Nifti1Image:
    """Convert an array (x, y), (x, y, z) or with further axes to a NIfTI image of the same dtype.

    The affine is stored as sform and, if its axes are perpendicular, as qform.
    """
    image = nibabel.Nifti1Image(np.ascontiguousarray(array), affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    if is_orthogonal(affine):
        image.set_qform(affine, code="scanner")
    return image


def array_to_sitk(array: NDArray, affine: Matrix) -> sitk.Image:
    """Convert an array (*spatial), axes in ITK's index order, to a SimpleITK image."""
    ndim = array.ndim
    size = affine_to_spacing(affine, ndim)
    lps = restrict_to_axes(RAS_TO_LPS @ affine, ndim)
    direction = lps[:-1, :-1] / size
    if not np.isclose(np.linalg.norm(direction, axis=0), 1).all():
        raise UserError(
            "ITK cannot store a 2D image outside the x-y plane of the world: save it as a 3D image "
            "of one slice."
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(size.tolist())
    image.SetOrigin(lps[:-1, -1].tolist())
    image.SetDirection(direction.ravel().tolist())
    return image
