"""The grid on which an image lies, and fields of vectors on it."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from regnet_lab.spatial import coordinates

Vectors = NDArray[np.floating]  # (D, *spatial)


@dataclass(frozen=True)
class Frame:
    """Where the voxels of an image lie: ``affine`` (4, 4) takes their indices to RAS+ mm."""

    shape: tuple[int, ...]
    affine: coordinates.Matrix

    @classmethod
    def of(cls, image: sitk.Image) -> "Frame":
        """The frame of an image or a field that SimpleITK holds."""
        return cls(image.GetSize(), coordinates.affine_of(image))

    @property
    def ndim(self) -> int:
        """Axes of the array."""
        return len(self.shape)

    @property
    def lps(self) -> coordinates.Matrix:
        """(D+1, D+1) from voxel indices to LPS+ mm."""
        return coordinates.in_plane(coordinates.RAS_TO_LPS @ self.affine, self.ndim)

    def empty(self) -> sitk.Image:
        """An image of zeros in this place."""
        return coordinates.to_image(np.zeros(self.shape, np.uint8), self.affine)

    def vectors(self, field: Vectors) -> sitk.Image:
        """A field (D, *spatial) as a vector image in this place, its numbers as they are."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(field.T), isVector=True)
        image.CopyInformation(self.empty())
        return image

    def millimetres(self, u: Vectors) -> sitk.Image:
        """A displacement in voxels of this frame as a vector image in mm, u_LPS = R diag(s) u."""
        return self.vectors(np.tensordot(self.lps[:-1, :-1].astype(u.dtype), u, 1))


def components(image: sitk.Image) -> Vectors:
    """The vectors of an image as (D, *spatial)."""
    return sitk.GetArrayFromImage(image).T


def flatten(transform: sitk.Transform, frame: Frame) -> sitk.Image:
    """T(x) - x at every voxel of a frame, as a float32 vector image in mm LPS+."""
    at = frame.empty()
    return sitk.TransformToDisplacementField(
        transform,
        sitk.sitkVectorFloat32,
        at.GetSize(),
        at.GetOrigin(),
        at.GetSpacing(),
        at.GetDirection(),
    )


def field_transform(vectors: sitk.Image) -> sitk.DisplacementFieldTransform:
    """A field in mm LPS+ as a transform: linear between voxels, the identity outside."""
    return sitk.DisplacementFieldTransform(
        sitk.Cast(vectors, sitk.sitkVectorFloat64)  # a copy, which the transform takes over
    )


def matrix_transform(matrix: coordinates.Matrix, ndim: int) -> sitk.AffineTransform:
    """A world-to-world map (4, 4), RAS+, as a transform of LPS+ points."""
    lps = coordinates.in_plane(coordinates.flip_matrix(matrix), ndim)
    return sitk.AffineTransform(lps[:-1, :-1].ravel().tolist(), lps[:-1, -1].tolist())


def matrix_of(transform: sitk.Transform) -> coordinates.Matrix:
    """The world-to-world map (4, 4), RAS+, of a linear transform of LPS+ points."""
    ndim = transform.GetDimension()
    origin = np.array(transform.TransformPoint([0.0] * ndim))
    lps = np.eye(ndim + 1)
    for axis, unit in enumerate(np.eye(ndim).tolist()):
        lps[:-1, axis] = np.array(transform.TransformPoint(unit)) - origin
    lps[:-1, -1] = origin
    return coordinates.flip_matrix(coordinates.embedded(lps))
