"""Geometry of NIfTI headers, as ITK and as FSL read it.

A header gives the position of an image up to three times: the rotation of the qform with the voxel
size ``pixdim``, the matrix of the sform, and ``pixdim`` alone where both codes are 0.  They may
differ.  Images are placed as ITK places them, so that written transforms hold for the same file in
programs built on ITK.
"""

import logging
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from regnet_lab.spatial import coordinates
from regnet_lab.utils.logs import log_once

log = logging.getLogger(__name__)

Header = nibabel.Nifti1Header

UNIT_TO_MM = {1: 1e3, 3: 1e-3}  # metre and micrometre, in the lowest bits of xyzt_units
UNIT_BITS = 7
SCANNER_CODE = 1
MAX_SHEAR = 1e-4  # of R R^T - 1, beyond which ITK does not use a sform
MIN_REAL_SQUARED = 1e-7  # of a quaternion's real part, below which ITK sets it to 0
MIN_DIFFERENCE = 0.01  # voxels by which two readings of a header differ before it is logged
GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def _read_stored_header(image: nibabel.Nifti1Pair) -> Header:
    """Read the header of an image from its file, where negative voxel sizes are negative."""
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        return type(image.header).from_fileobj(file, check=False)


def read_header(path: Path) -> Header | None:
    """Read the header of a NIfTI file as it is stored; return None for other formats."""
    if not path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz")):
        return None
    with LoggingOutputSuppressor():  # nibabel logs what it would change
        image = nibabel.load(path)
    return _read_stored_header(image) if isinstance(image, nibabel.Nifti1Pair) else None


def make_header(affine: coordinates.Matrix) -> Header:
    """Create a header with the geometry that :func:`coordinates.array_to_nifti` writes."""
    return coordinates.array_to_nifti(np.zeros((1, 1, 1), np.uint8), affine).header


def copy_geometry(source: Header, target: Header) -> None:
    """Copy position, voxel size and unit of one header to another, in place."""
    for field in GEOMETRY_FIELDS:
        target[field] = source[field]
    target["pixdim"][:4] = source["pixdim"][:4]


def _get_voxel_size(header: Header) -> NDArray[np.float64]:
    """Return ``pixdim`` with its signs, in the unit of the header; 1 where it is not a size."""
    size = np.asarray(header["pixdim"][1:4], np.float64)
    return np.where(np.isfinite(size) & (size != 0), size, 1.0)


def _get_sform(header: Header) -> coordinates.Matrix | None:
    """Return the matrix (4, 4) of the sform, or None if its code is 0."""
    if int(header["sform_code"]) <= 0:
        return None
    rows = [np.asarray(header[f"srow_{axis}"], np.float64) for axis in "xyz"]
    return np.array([*rows, [0, 0, 0, 1]])


def _get_qform(header: Header) -> coordinates.Matrix | None:
    """Return the matrix (4, 4) of the qform for voxels of size 1, or None if its code is 0."""
    if int(header["qform_code"]) <= 0:
        return None
    vector = np.nan_to_num([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    real_squared = 1 - vector @ vector
    real = np.sqrt(real_squared) if real_squared >= MIN_REAL_SQUARED else 0.0
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([*vector, real]).as_matrix()
    matrix[:3, 2] *= -1 if header["pixdim"][0] < 0 else 1
    matrix[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return matrix


def _normalize_columns(matrix: coordinates.Matrix) -> coordinates.Matrix | None:
    """Return the matrix with axes of length 1, or None if they are not perpendicular."""
    size = coordinates.affine_to_spacing(matrix)
    axes = matrix[:3, :3] / np.where(size > 0, size, 1)
    if not np.abs(axes @ axes.T - np.eye(3)).max() <= MAX_SHEAR:
        return None
    result = matrix.copy()
    result[:3, :3] = axes
    return result


def choose_geometry(header: Header) -> tuple[str, coordinates.Matrix]:
    """Choose the geometry that ITK uses; return its name and the affine (4, 4) in RAS+ mm.

    ``sform``: perpendicular, and its code is 1 (scanner) or there is no qform.  ``qform``: in other
    files that have one.  Both take the voxel size from ``pixdim``.  ``sheared sform``: the matrix
    as it is; ITK cannot read the file.  ``neither``: voxel (0, 0, 0) at the origin and axes to
    left, back and top.
    """
    sform, qform = _get_sform(header), _get_qform(header)
    size = np.diag([*_get_voxel_size(header), 1.0])
    rigid = None if sform is None else _normalize_columns(sform)
    if rigid is not None and (qform is None or int(header["sform_code"]) == SCANNER_CODE):
        name, affine = "sform", rigid @ size
    elif qform is not None:
        name, affine = "qform", qform @ size
    elif sform is not None:
        name, affine = "sheared sform", sform
    else:
        name, affine = "neither", coordinates.RAS_TO_LPS @ size
    affine[:3] *= UNIT_TO_MM.get(int(header["xyzt_units"]) & UNIT_BITS, 1.0)
    return name, affine


def _compute_largest_distance(
    shape: tuple[int, ...], first: coordinates.Matrix, second: coordinates.Matrix
) -> float:
    """Compute the largest distance between two placements of an image, which is at a corner."""
    corners = np.array(list(product(*((0, max(size - 1, 0)) for size in shape[:3]))), float)
    apart = coordinates.voxel_to_world(first, corners) - coordinates.voxel_to_world(second, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def _list_readings(header: Header) -> dict[str, coordinates.Matrix]:
    """List what the header says otherwise: sform and qform, in RAS+ mm."""
    unit = np.diag([*[UNIT_TO_MM.get(int(header["xyzt_units"]) & UNIT_BITS, 1.0)] * 3, 1.0])
    size = np.diag([*np.abs(_get_voxel_size(header)), 1.0])
    sform, qform = _get_sform(header), _get_qform(header)
    readings = {"sform": sform, "qform": None if qform is None else qform @ size}
    return {name: unit @ matrix for name, matrix in readings.items() if matrix is not None}


def read_affine(path: Path, image: nibabel.Nifti1Pair) -> coordinates.Matrix:
    """Return the affine of a NIfTI file, RAS+ mm; log where its header contradicts itself."""
    header = _read_stored_header(image)
    name, affine = choose_geometry(header)
    if name == "neither":
        message = "has neither qform nor sform: as in ITK, its first voxel lies at the origin"
        log_once(log, f"{path}: {message}.", logging.INFO)
    if name == "sheared sform":
        log_once(
            log,
            f"{path}: its axes are not perpendicular (sheared sform); programs built on ITK, "
            "ANTs among them, cannot read it.",
        )
    for other, reading in _list_readings(header).items():
        distance = _compute_largest_distance(image.shape, affine, reading)
        if distance > MIN_DIFFERENCE * coordinates.affine_to_spacing(affine).min():
            contradiction = f"the voxel size of its {other}" if other in name else f"its {other}"
            log_once(
                log,
                f"{path}: its {name} is used, as in ITK; {contradiction} would place its corners "
                f"up to {distance:.3g} mm elsewhere.",
            )
    return affine


def _list_fsl_signs(header: Header) -> list[bool]:
    """List the signs of the determinants of sform and qform, those that exist: True if positive."""
    forms = (_get_sform(header), _get_qform(header))
    return [bool(np.linalg.det(form[:3, :3]) > 0) for form in forms if form is not None]


def is_mirrored(header: Header) -> bool:
    """Check whether qform and sform mirror each other, so that FSL cannot read the file."""
    return len(set(_list_fsl_signs(header))) > 1


def compute_voxel_to_fsl(header: Header, length: int) -> coordinates.Matrix:
    """Compute the matrix (4, 4) from voxels to FSL coordinates; the x axis has ``length`` voxels.

    FSL takes ``pixdim`` whatever its unit, and reverses x where the sform, or else the qform, has a
    positive determinant.
    """
    matrix = np.diag([*np.abs(_get_voxel_size(header)), 1.0])
    if any(_list_fsl_signs(header)[:1]):
        matrix[0] *= -1
        matrix[0, 3] = -(length - 1) * matrix[0, 0]
    return matrix
