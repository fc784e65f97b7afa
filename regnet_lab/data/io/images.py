"""Reading of images and label maps, their axes in the file's own index order (i, j, k)."""

import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from regnet_lab.data.io.formats import find_reader
from regnet_lab.data.preprocessing.padding import find_padding_value
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.utils.files import require_file

log = logging.getLogger(__name__)

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


MAX_EXACT_FLOAT32, MAX_EXACT_FLOAT64 = 2**24, 2**53  # all smaller whole numbers are exact


@dataclass(frozen=True)
class Volume:
    """An image and its position in the world.

    Args:
        array: Values, 2D to 4D.
        affine: (4, 4) from voxels to millimetres, RAS+.
        num_replaced: Number of values of the file that were not finite and have been replaced.
    """

    array: NDArray
    affine: coordinates.Matrix
    num_replaced: NDArray | int = 0

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


def _narrow_values(array: NDArray) -> NDArray:
    """Convert real numbers to float32 and integers of 8 bytes to int32.

    Whole numbers that these do not hold exactly, such as large label values, become or stay
    integers of 8 bytes.
    """
    if array.dtype.kind == "f":
        high = np.abs(array).max() if array.itemsize > 4 and array.size else 0
        if MAX_EXACT_FLOAT32 < high <= MAX_EXACT_FLOAT64 and (array == np.rint(array)).all():
            return _narrow_values(array.astype(np.int64))
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    limits = np.iinfo(np.int32)
    is_long = array.itemsize > 4 and array.size
    if is_long and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int32)
    return array


def drop_trailing_axes(array: NDArray, ndim: int) -> NDArray:
    """Drop trailing axes of length one of an array with more than ``ndim`` axes."""
    while array.ndim > ndim and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def replace_nonfinite(path: Path, array: NDArray) -> tuple[NDArray, int]:
    """Replace values that are not finite by that of the padding, or else by the smallest one.

    Their number is returned too; a warning names the file.
    """
    finite = np.isfinite(array)
    num_invalid = int(array.size - finite.sum())
    if not num_invalid:
        return array, 0
    if num_invalid == array.size:
        raise UserError(f"{path}: all voxels are NaN or infinite; replace the file.")
    padding = find_padding_value(array)
    value = array[finite].min() if padding is None else padding
    source = "its smallest value" if padding is None else "the value of its padding"
    log.warning(
        "%s: %d of its values are NaN or infinite; in an image they are set to %g, %s.",
        path,
        num_invalid,
        value,
        source,
    )
    return np.where(finite, array, array.dtype.type(value)), num_invalid


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
    """Read a whole image file, 2D to 4D, as integers or float32.

    Trailing axes of length one are dropped.  Values that are not finite are replaced, with a
    warning.

    Raises:
        UserError: The file is missing, damaged, no grayscale image, or holds no finite value.
    """
    require_file(path, folder_allowed=True)
    try:
        array, affine = find_reader(path)(path)
    except IMAGE_READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace it.") from error
    array = drop_trailing_axes(array, 2)
    if not 2 <= array.ndim <= 4:
        raise UserError(f"{path}: has {array.ndim} axes; an image has 2 to 4.")
    array, num_invalid = replace_nonfinite(path, _narrow_values(array))
    affine = _complete_affine(path, affine, array.ndim)
    return Volume(array, affine, np.array(num_invalid))


def select_frame(path: Path, volume: Volume, phase: int | None) -> Volume:
    """Return one frame of a 4D image, or a 2D or 3D image as it is, with its own dtype.

    Raises:
        UserError: A 4D image without a phase, a phase it does not have, or one of a 3D image.
    """
    array = volume.array
    if array.ndim == 4:
        count = array.shape[3]
        if phase is None or not 0 <= phase < count:
            raise UserError(
                f"{path}: has {count} frames; choose one, 0 to {count - 1}, by its phase "
                f"(fixed_phase, moving_phase), not {phase}."
            )
        return replace(volume, array=array[..., phase])
    if phase:
        raise UserError(f"{path}: is not a 4D image, so it has no phase {phase}.")
    return volume


def extract_frame(path: Path, volume: Volume, phase: int | None) -> Volume:
    """Return a frame as :func:`select_frame` does, as float32."""
    frame = select_frame(path, volume, phase)
    return replace(frame, array=np.asarray(frame.array, np.float32))


def read_volume(path: Path, phase: int | None = None) -> Volume:
    """Read a 2D or 3D image, or frame ``phase`` of a 4D one, as float32."""
    return extract_frame(path, decode_image(path), phase)
