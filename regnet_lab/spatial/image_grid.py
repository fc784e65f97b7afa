"""Image grids, vector fields on them, and their conversion to SimpleITK images and transforms."""

import logging
from dataclasses import dataclass

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regnet_lab.spatial import coordinates

log = logging.getLogger(__name__)

Vectors = NDArray[np.floating]  # (D, *spatial)

MAX_EXTENT_RATIO = 3.0  # between two images to register
USUAL_SPACING = (0.001, 20.0)  # mm


@dataclass(frozen=True)
class ImageGrid:
    """The voxel grid of an image in the world.

    Args:
        shape: Voxels along each axis.
        affine: (4, 4) from voxel indices to RAS+ mm.
        header: Of the NIfTI file that holds the image, which determines its FSL coordinates; None:
            that of a file written here.
    """

    shape: tuple[int, ...]
    affine: coordinates.Matrix
    header: nibabel.Nifti1Header | None = None

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> "ImageGrid":
        """Return the grid of a SimpleITK image."""
        return cls(image.GetSize(), coordinates.affine_from_sitk(image))

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Return mm per voxel along each axis."""
        return coordinates.affine_to_spacing(self.affine, self.ndim)

    @property
    def voxel_to_lps(self) -> coordinates.Matrix:
        """Return the matrix (D+1, D+1) from voxel indices to LPS+ mm."""
        return coordinates.restrict_to_axes(coordinates.RAS_TO_LPS @ self.affine, self.ndim)

    def list_voxels(self) -> NDArray[np.integer]:
        """Return the indices (N, D) of all voxels."""
        return np.indices(self.shape).reshape(self.ndim, -1).T

    def to_sitk(self) -> sitk.Image:
        """Create a SimpleITK image of zeros on this grid."""
        return coordinates.array_to_sitk(np.zeros(self.shape, np.uint8), self.affine)

    def to_vector_image(self, field: Vectors) -> sitk.Image:
        """Convert a field (D, *spatial) to a SimpleITK vector image with the same values."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(field.T), isVector=True)
        image.CopyInformation(self.to_sitk())
        return image

    def displacement_to_mm(self, u: Vectors) -> sitk.Image:
        """Convert a displacement in voxels to a vector image in LPS+ mm: R diag(s) u."""
        return self.to_vector_image(np.tensordot(self.voxel_to_lps[:-1, :-1].astype(u.dtype), u, 1))


def warn_about_units(fixed: ImageGrid, moving: ImageGrid) -> None:
    """Log a warning if two images differ much in size, or if a spacing is unusual.

    Their sizes in mm, sorted along the axes, then differ by a factor of 3 or more, or a spacing is
    above 20 mm or below 0.001 mm.
    """

    def join(values: NDArray[np.floating]) -> str:
        return " x ".join(f"{value:.4g}" for value in values)

    extents = [grid.spacing * grid.shape for grid in (fixed, moving)]
    ratio = np.abs(np.log(np.sort(extents[0]) / np.sort(extents[1]))).max()
    if ratio >= np.log(MAX_EXTENT_RATIO):
        log.warning(
            "The fixed image measures %s mm and the moving image %s mm: check the units of their "
            "voxel sizes.",
            *map(join, extents),
        )
    for name, grid in (("fixed", fixed), ("moving", moving)):
        low, high = grid.spacing.min().round(6), grid.spacing.max()  # 1 um of a float32 header
        if low < USUAL_SPACING[0] or high > USUAL_SPACING[1]:
            log.warning(
                "The %s image has voxels of %s mm: check their unit.", name, join(grid.spacing)
            )


def vectors_from_image(image: sitk.Image) -> Vectors:
    """Return the values of a SimpleITK vector image as (D, *spatial)."""
    return sitk.GetArrayFromImage(image).T


def transform_to_field(transform: sitk.Transform, grid: ImageGrid) -> sitk.Image:
    """Evaluate T(x) - x at every voxel of a grid, as a float32 vector image in LPS+ mm."""
    evaluate = sitk.TransformToDisplacementFieldFilter()
    evaluate.SetOutputPixelType(sitk.sitkVectorFloat32)
    evaluate.SetReferenceImage(grid.to_sitk())
    return evaluate.Execute(transform)


def field_to_transform(vectors: sitk.Image) -> sitk.DisplacementFieldTransform:
    """Convert a field in LPS+ mm to a transform: linear between voxels, the identity outside."""
    copy = sitk.Cast(vectors, sitk.sitkVectorFloat64)  # the transform takes ownership of it
    return sitk.DisplacementFieldTransform(copy)


def matrix_to_transform(matrix: coordinates.Matrix, ndim: int) -> sitk.AffineTransform:
    """Convert a world-to-world matrix (4, 4) in RAS+ to a transform of LPS+ points."""
    lps = coordinates.restrict_to_axes(coordinates.flip_matrix(matrix), ndim)
    return sitk.AffineTransform(lps[:-1, :-1].ravel().tolist(), lps[:-1, -1].tolist())


def transform_to_matrix(transform: sitk.Transform) -> coordinates.Matrix:
    """Convert a linear transform of LPS+ points to a world-to-world matrix (4, 4) in RAS+."""
    lps = np.eye(transform.GetDimension() + 1)
    points = lps[:, :-1].tolist()  # the unit vectors and the origin
    *ends, origin = np.array([transform.TransformPoint(point) for point in points])
    lps[:-1] = np.column_stack([*(end - origin for end in ends), origin])
    return coordinates.flip_matrix(coordinates.embed_in_3d(lps))
