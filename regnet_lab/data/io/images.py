"""Reading images and tables from disk: array in nibabel's order, voxel-to-world matrix, spacing.

Whatever the format, axes are in the file's own index order (i, j, k) and the affine leads to
millimetres, RAS+.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from regnet_lab.data.io.formats import reader_of
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RuntimeError,
    zlib.error,
)


@dataclass(frozen=True)
class Volume:
    """An image and where it lies: ``affine`` takes voxel indices to millimetres, RAS+."""

    array: NDArray
    affine: coordinates.Matrix

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Millimetres per voxel along each array axis."""
        return coordinates.spacing(self.affine, self.array.ndim)


def existing_folder(folder: str | Path, what: str) -> Path:
    """The folder as a path.

    Raises:
        UserError: It does not exist.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{what}: the folder {path} does not exist; put the data there, or say where it is "
            "with data_root=<folder> or the environment variable REGNET_LAB_DATA."
        )
    return path


def _plain(path: Path, array: NDArray) -> NDArray:
    """The array without axes of length one at its end, in integers of up to 4 bytes or float32."""
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if not 2 <= array.ndim <= 4:
        raise UserError(f"{path}: has {array.ndim} axes; an image has 2 to 4.")
    if array.dtype.kind == "f" or array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    broken = int(array.size - np.isfinite(array).sum())
    if broken:
        raise UserError(f"{path}: {broken} voxels are NaN or infinite; repair or remove the image.")
    return array


def _regular(path: Path, affine: coordinates.Matrix, ndim: int) -> coordinates.Matrix:
    """The affine, with a way out of the plane where the header of a 2D image gives none."""
    if ndim == 2 and not coordinates.is_regular(affine):
        affine = affine.copy()
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / np.linalg.norm(normal) if normal.any() else 0
    if not coordinates.is_regular(affine):
        raise UserError(f"{path}: its voxel-to-world matrix is singular; repair its header.")
    return affine


def decode(path: Path) -> Volume:
    """Read a whole file, 2D to 4D, in its own integer type or as float32.

    NIfTI and MGH through nibabel; ``.npy`` in voxels of 1 mm; NRRD, MHA, MHD, a DICOM folder and
    pictures (as luminance) through SimpleITK.  Axes of length one at the end are dropped.

    Raises:
        UserError: The file is missing, damaged, no grey image, or holds a value that is not finite.
    """
    if not path.exists():
        raise UserError(f"{path}: this file is missing.")
    try:
        array, affine = reader_of(path)(path)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace it.") from error
    array = _plain(path, array)
    return Volume(array, _regular(path, affine, array.ndim))


def frame(path: Path, volume: Volume, phase: int | None) -> Volume:
    """One time point of a 4D image, as float32; a 2D or 3D one as it is.

    Raises:
        UserError: A 4D image without a phase, a phase it does not have, or one of a 3D image.
    """
    array = volume.array
    if array.ndim == 4:
        if phase is None or not 0 <= phase < array.shape[3]:
            raise UserError(
                f"{path}: has {array.shape[3]} frames; the phase must be one of 0 to "
                f"{array.shape[3] - 1}, not {phase}."
            )
        array = array[..., phase]
    elif phase:
        raise UserError(f"{path}: is no 4D image, so it has no phase {phase}.")
    return Volume(np.asarray(array, np.float32), volume.affine)


def read_volume(path: Path, phase: int | None = None) -> Volume:
    """Read a 2D or 3D image, or frame ``phase`` of a 4D one, as float32.

    Raises:
        UserError: As :func:`decode` and :func:`frame`.
    """
    return frame(path, decode(path), phase)


def whole_numbers(path: Path, labels: Volume, like: Volume, image: Path) -> NDArray[np.int16]:
    """The array of labels that were read, as they must be to belong to an image.

    Raises:
        UserError: Its shape differs from the image's, or a value is no whole number of 0 to 32767.
    """
    array = labels.array
    if array.shape != like.array.shape:
        raise UserError(
            f"{path}: its shape {array.shape} differs from {like.array.shape} of its image {image}."
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int16).max or (array != np.rint(array)).any():
        raise UserError(
            f"{path}: label values must be whole numbers from 0 to 32767, "
            f"not from {array.min():g} to {array.max():g}."
        )
    return array.astype(np.int16)


def read_labels(
    path: Path, like: Volume, image: Path, phase: int | None = None
) -> NDArray[np.int16]:
    """Read a label map that belongs to an image; ``phase`` is for one that is 4D.

    Raises:
        UserError: As :func:`decode`, :func:`frame` and :func:`whole_numbers`.
    """
    found = decode(path)
    labels = frame(path, found, phase if found.array.ndim == 4 else None)
    return whole_numbers(path, labels, like, image)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV as text, empty where a cell is.

    Raises:
        UserError: It is missing, is no CSV, or lacks a column.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a CSV; repair or replace it.") from error
    if missing := [column for column in columns if column not in frame.columns]:
        raise UserError(f"{path}: has no column '{missing[0]}'; its first line must name it.")
    return frame.to_dict("records")
