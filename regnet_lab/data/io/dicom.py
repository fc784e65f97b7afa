"""Reading of DICOM: one slice, or the only series of a folder.

Slices are read one by one, each with its own rescaling, and placed by their own positions.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.header_checks import check_size
from regnet_lab.utils.logs import log_once

log = logging.getLogger(__name__)

PIXEL_SIZE_TAGS = ("0028|0030", "0018|1164")  # in the patient, and at the detector
MAX_DEVIATION = 0.05  # of the distance between slices
MAX_AXES_DIFFERENCE = 1e-3  # of unit vectors, and relative of pixel sizes
MIN_GAP = 1e-3  # mm; closer slices have the same position


@dataclass(frozen=True)
class Slice:
    """The header of a DICOM file of one slice.

    Args:
        affine: (4, 4) from voxels to LPS+ mm.
    """

    file: Path
    shape: tuple[int, int]
    affine: coordinates.Matrix

    @property
    def axes(self) -> NDArray[np.float64]:
        """Return the unit vectors of columns, rows and normal as columns of a matrix (3, 3)."""
        return self.affine[:3, :3] / coordinates.affine_to_spacing(self.affine)


def _read_header(file: Path) -> Slice:
    """Read the header of a DICOM file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) > 2 and max(size[2:]) > 1:
        raise UserError(
            f"{file}: holds {size[2]} frames in one file (multi-frame DICOM), whose positions and "
            "scales are not read here; convert it to NIfTI, for example with dcm2niix."
        )
    check_size(file, size, 1)
    if reader.GetNumberOfComponents() != 1:
        raise UserError(f"{file}: has colours or vectors; give one grayscale image.")
    if not any(reader.HasMetaDataKey(tag) for tag in PIXEL_SIZE_TAGS):
        log_once(log, f"{file.parent}: a file states no pixel size; its pixels are taken as 1 mm.")
    affine = coordinates.RAS_TO_LPS @ coordinates.affine_from_sitk(reader)
    return Slice(file, (size[0], size[1]), affine)


def _require_one_plane(slices: Sequence[Slice]) -> None:
    """Raise UserError if slices differ in size, pixel size or orientation."""
    first = slices[0]
    pixel = coordinates.affine_to_spacing(first.affine, 2)
    for other in slices[1:]:
        resized = coordinates.affine_to_spacing(other.affine, 2) / pixel - 1
        differences = {
            "size": other.shape != first.shape,
            "pixel size": np.abs(resized).max() > MAX_AXES_DIFFERENCE,
            "orientation": np.abs(other.axes - first.axes).max() > MAX_AXES_DIFFERENCE,
        }
        for name, differs in differences.items():
            if differs:
                raise UserError(
                    f"{first.file.parent}: {first.file.name} and {other.file.name} differ in "
                    f"{name}, so they are not slices of one volume; give a folder of one volume."
                )


def _require_one_image_per_position(slices: Sequence[Slice], gaps: NDArray[np.float64]) -> None:
    """Raise UserError if two of the sorted slices have one position."""
    apart = gaps[gaps > MIN_GAP]
    repeated = gaps <= max(MIN_GAP, MAX_DEVIATION * float(np.median(apart)) if apart.size else 0)
    if not repeated.any():
        return
    folder, starts = slices[0].file.parent, np.flatnonzero(~repeated) + 1
    counts = np.diff([0, *starts, len(slices)])
    if np.ptp(counts) == 0 and len(slices) > 2:
        raise UserError(
            f"{folder}: holds {counts[0]} images at each of {counts.size} positions: phases, "
            "echoes or repetitions of one volume, or files without a position; give a folder of "
            "one volume."
        )
    place = int(np.argmax(repeated))
    first, second = (item.file.name for item in slices[place : place + 2])
    raise UserError(
        f"{folder}: a slice is doubled, {first} and {second} have the same position; remove one."
    )


def _sort_slices(slices: Sequence[Slice]) -> list[Slice]:
    """Sort slices along their normal; raise UserError unless each is at its own regular place."""
    folder, normal = slices[0].file.parent, slices[0].axes[:, 2]
    along = np.array([item.affine[:3, 3] @ normal for item in slices])
    order = np.argsort(along, kind="stable")
    ordered, gaps = [slices[n] for n in order], np.diff(along[order])
    _require_one_image_per_position(ordered, gaps)
    usual = float(np.median(gaps))
    if np.ptp(gaps) > MAX_DEVIATION * usual:
        worst = int(np.argmax(np.abs(gaps - usual)))
        first, second = (item.file.name for item in ordered[worst : worst + 2])
        raise UserError(
            f"{folder}: slices are unequally spaced or one is missing, {first} and "
            f"{second} are {gaps[worst]:.4g} mm apart and most others {usual:.4g} mm."
        )
    return ordered


def _compute_affine(slices: Sequence[Slice]) -> coordinates.Matrix:
    """Compute the affine, LPS+ mm, of sorted slices; tilted ones (gantry tilt) make it sheared."""
    folder, affine = slices[0].file.parent, slices[0].affine.copy()
    positions = np.array([item.affine[:3, 3] for item in slices])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    normal = slices[0].axes[:, 2]
    gap = float(step @ normal)
    expected = positions[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - expected, axis=1).max() > MAX_DEVIATION * gap:
        raise UserError(
            f"{folder}: its slices are not equally spaced on a line; resample it to a regular grid."
        )
    tilt = np.linalg.norm(step - gap * normal) / gap
    if tilt > coordinates.MAX_SHEAR:
        affine[:3, 2] = step
        log_once(
            log,
            f"{folder}: its slices are tilted by {np.degrees(np.arctan(tilt)):.1f} degrees (gantry "
            "tilt) and are placed as recorded; ITK's own reader ignores the tilt.",
        )
    else:
        affine[:3, 2] = gap * normal
    return affine


def _list_series(folder: Path) -> list[Path]:
    """List the files of the only series of a folder."""
    warnings_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warnings_shown)
    if len(series) != 1:
        number = (
            f"{len(series)} DICOM series ({', '.join(series)})" if series else "no DICOM series"
        )
        raise UserError(f"{folder}: holds {number}; give a folder with exactly one.")
    return [Path(f) for f in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])]


def read_dicom(path: Path) -> tuple[NDArray, coordinates.Matrix]:
    """Read a DICOM file, or the only series of a folder, as an array (x, y, z) and its affine.

    Raises:
        UserError: There is no series or there are several; a file has several frames; slices
            differ in size or orientation, are missing, doubled or unequally spaced.
    """
    files = _list_series(path) if path.is_dir() else [path]
    slices = [_read_header(file) for file in files]
    affine = slices[0].affine
    if len(slices) > 1:
        _require_one_plane(slices)
        slices = _sort_slices(slices)
        affine = _compute_affine(slices)
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(item.file))).T for item in slices]
    planes = [array.reshape(item.shape) for array, item in zip(arrays, slices, strict=True)]
    return np.stack(planes, axis=2), coordinates.RAS_TO_LPS @ affine
