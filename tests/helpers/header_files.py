"""Image files of random geometry, their headers written as text or bytes, and their strategies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.helpers.geometry import rotation
from tests.helpers.nifti import UNITS, write_nifti

GRADIENT = np.array([1.0, 1.7, -2.3])  # of the values of every image, per voxel
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """The geometry that a file states.

    Args:
        axes: (3, 3), unit vectors of the array axes as columns, RAS+.
        spacing: In the unit of the file.
        origin: The same, RAS+.
        codes: Of sform and qform.
        other: Matrix of a sform that differs from the qform, or None.
        unit: ``xyzt_units`` of NIfTI.
        negative: Whether the first voxel size is stored as a negative number.
    """

    suffix: str
    shape: tuple[int, int, int]
    axes: NDArray
    spacing: NDArray
    origin: NDArray
    codes: tuple[int, int]
    other: NDArray | None
    unit: int
    negative: bool

    @property
    def is_sheared(self) -> bool:
        """Check whether the axes are not perpendicular."""
        return not np.allclose(self.axes.T @ self.axes, np.eye(3), atol=1e-6)


def make_array(shape):
    """Return an image that is linear in its voxel indices."""
    return np.tensordot(GRADIENT, np.indices(shape), 1).astype(np.float32)


def write_image(folder: Path, name: str, geometry: Geometry) -> Path:
    """Write a linear image with a geometry and return its path."""
    path, array = folder / f"{name}{geometry.suffix}", make_array(geometry.shape)
    signs = np.array([-1 if geometry.negative else 1, 1, 1])
    if ".nii" in geometry.suffix:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = geometry.axes * geometry.spacing, geometry.origin
        sform = matrix if geometry.other is None else geometry.other
        pixdim = signs * geometry.spacing
        return write_nifti(path, array, sform, matrix, *geometry.codes, geometry.unit, pixdim)
    axes, origin = RAS_TO_LPS @ geometry.axes, RAS_TO_LPS @ geometry.origin
    if geometry.suffix == ".mha":
        text = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"TransformMatrix = {join(axes.T.ravel())}\nOffset = {join(origin)}\n"
            f"ElementSpacing = {join(signs * geometry.spacing)}\nDimSize = {join(geometry.shape)}\n"
            "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
        )
    else:
        vectors = " ".join(f"({join(v, ',')})" for v in (geometry.axes * geometry.spacing).T)
        text = (
            "NRRD0004\ntype: float\ndimension: 3\nspace: right-anterior-superior\n"
            f"sizes: {join(geometry.shape)}\nspace directions: {vectors}\n"
            f"space origin: ({join(geometry.origin, ',')})\nendian: little\nencoding: raw\n\n"
        )
    path.write_bytes(text.encode() + array.tobytes(order="F"))
    return path


def join(values, separator=" "):
    """Format numbers without loss."""
    return separator.join(repr(float(v)) if v % 1 else str(int(v)) for v in values)


@st.composite
def geometries(draw):
    """Draw the geometry of a file: flips, permutations, oblique and unequal axes, codes, units."""
    suffix = draw(st.sampled_from(SUFFIXES))
    is_nifti = ".nii" in suffix
    axes = np.eye(3)[:, draw(st.permutations(range(3)))]
    axes = axes * draw(st.tuples(*[st.sampled_from((1, -1))] * 3))
    axes = rotation(*draw(st.tuples(*[st.sampled_from((0, 0, 1, -7, 30, 44))] * 3))) @ axes
    if not is_nifti and draw(st.booleans()):
        axes[:, 1] += draw(st.sampled_from((0.01, -0.3))) * axes[:, 0]
        axes /= np.linalg.norm(axes, axis=0)
    spacing = np.array(draw(st.tuples(*[st.sampled_from((0.3, 1.0, 1.25, 4.0))] * 3)))
    origin = np.array(draw(st.tuples(*[st.integers(-300, 300)] * 3)), float)
    other = None
    if is_nifti and draw(st.booleans()):
        other = np.eye(4)
        other[:3, :3] = rotation(*draw(st.tuples(*[st.integers(-180, 180)] * 3))) * spacing
        other[:3, 3] = origin + draw(st.integers(1, 30))
    return Geometry(
        suffix,
        draw(st.tuples(*[st.integers(5, 8)] * 3)),
        axes,
        spacing,
        origin,
        (draw(st.integers(0, 4)), draw(st.integers(0, 4))),
        other,
        draw(st.sampled_from(UNITS)) if is_nifti else 2,
        suffix != ".nrrd" and draw(st.booleans()),
    )
