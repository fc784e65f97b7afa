"""Reading of images and label maps, their axes in the file's own index order (i, j, k)."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from regnet_lab.data.io.formats import find_reader
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

IMAGE_READ_ERRORS = (
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
    """An image and its position in the world.

    Args:
        array: Values, 2D to 4D.
        affine: (4, 4) from voxels to millimetres, RAS+.
    """

    array: NDArray
    affine: coordinates.Matrix

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Millimetres per voxel along each array axis."""
        return coordinates.affine_to_spacing(self.affine, self.array.ndim)


Decoder = Callable[[Path], Volume]


def require_folder(folder: str | Path, purpose: str) -> Path:
    """Return a folder as a path, or raise a UserError if it does not exist."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(
            f"{purpose}: the folder {path} does not exist; put the data there, or set "
            "data_root=<folder> or the environment variable REGNET_LAB_DATA."
        )
    return path


def _standardize_array(path: Path, array: NDArray) -> NDArray:
    """Drop trailing axes of length one and convert to integers of up to 4 bytes or float32."""
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if not 2 <= array.ndim <= 4:
        raise UserError(f"{path}: has {array.ndim} axes; an image has 2 to 4.")
    if array.dtype.kind == "f" or array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if num_invalid := array.size - np.isfinite(array).sum():
        raise UserError(
            f"{path}: {num_invalid} voxels are NaN or infinite; repair or remove the image."
        )
    return array


def _complete_affine(path: Path, affine: coordinates.Matrix, ndim: int) -> coordinates.Matrix:
    """Return the affine, completed by the plane's normal if the header of a 2D image gives none."""
    if ndim == 2 and not coordinates.is_invertible(affine):
        affine = affine.copy()
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / np.linalg.norm(normal) if normal.any() else 0
    if not coordinates.is_invertible(affine):
        raise UserError(f"{path}: its voxel-to-world matrix is singular; repair its header.")
    return affine


def decode_image(path: Path) -> Volume:
    """Read a whole image file, 2D to 4D, in its own integer type or as float32.

    Trailing axes of length one are dropped.

    Raises:
        UserError: The file is missing, damaged, no grayscale image, or holds a value that is not
            finite.
    """
    if not path.exists():
        raise UserError(f"{path}: this file is missing.")
    try:
        array, affine = find_reader(path)(path)
    except IMAGE_READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace it.") from error
    array = _standardize_array(path, array)
    return Volume(array, _complete_affine(path, affine, array.ndim))


def extract_frame(path: Path, volume: Volume, phase: int | None) -> Volume:
    """Return one frame of a 4D image, or a 2D or 3D image as it is, as float32.

    Raises:
        UserError: A 4D image without a phase, a phase it does not have, or one of a 3D image.
    """
    array = volume.array
    if array.ndim == 4:
        count = array.shape[3]
        if phase is None or not 0 <= phase < count:
            raise UserError(
                f"{path}: has {count} frames; the phase must be one of 0 to {count - 1}, "
                f"not {phase}."
            )
        array = array[..., phase]
    elif phase:
        raise UserError(f"{path}: is not a 4D image, so it has no phase {phase}.")
    return Volume(np.asarray(array, np.float32), volume.affine)


def read_volume(path: Path, phase: int | None = None) -> Volume:
    """Read a 2D or 3D image, or frame ``phase`` of a 4D one, as float32."""
    return extract_frame(path, decode_image(path), phase)


def validate_labels(
    path: Path, labels: Volume, image: Volume, image_path: Path
) -> NDArray[np.int16]:
    """Return the array of a label map or mask after comparing it with its image.

    Raises:
        UserError: Its shape differs from the image's, or a value is no whole number of 0 to 32767.
    """
    array = labels.array
    if array.shape != image.array.shape:
        raise UserError(
            f"{path}: its shape {array.shape} differs from {image.array.shape} of its image "
            f"{image_path}."
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int16).max or (array != np.rint(array)).any():
        raise UserError(
            f"{path}: label values must be whole numbers from 0 to 32767, "
            f"not from {array.min():g} to {array.max():g}."
        )
    return array.astype(np.int16)


def read_labels(
    path: Path,
    image: Volume,
    image_path: Path,
    phase: int | None = None,
    decoder: Decoder = decode_image,
) -> NDArray[np.int16]:
    """Read the label map or mask of an image, or frame ``phase`` of a 4D one.

    ``image_path`` is named in messages; ``decoder`` reads a file, or returns it from a cache.
    """
    volume = decoder(path)
    labels = extract_frame(path, volume, phase if volume.array.ndim == 4 else None)
    return validate_labels(path, labels, image, image_path)
