"""Reading of label maps and masks as whole numbers on the grid of their image."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.io.grid_matching import match_grids, resample_nearest
from regnet_lab.data.io.images import Decoder, Volume, decode_image, select_frame
from regnet_lab.errors import UserError
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.utils.logs import log_once

MAX_LABEL = np.iinfo(np.int32).max
MAX_FLOAT_LABEL = 2**24  # up to here float32 holds every whole number
ROUNDING_ERROR = 1e-3  # up to which a real number counts as whole
LOSSY_SUFFIXES = (".jpg", ".jpeg")

log = logging.getLogger(__name__)
log_info = partial(log_once, log, level=logging.INFO)


def _find_fractions(array: NDArray) -> NDArray[np.bool_]:
    """Find the values of a real array that are not whole numbers, but for rounding errors."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(array - np.rint(array)) <= ROUNDING_ERROR)


def _check_lossless(path: Path) -> None:
    if path.suffix.lower() in LOSSY_SUFFIXES:
        raise UserError(
            f"{path}: JPEG changes labels; store them without loss, for instance as PNG."
        )


def _check_not_negative(path: Path, kind: str, array: NDArray) -> None:
    if (low := array.min()) < 0:
        raise UserError(
            f"{path}: {kind} values must be whole numbers from 0, but {(array < 0).sum()} of "
            f"{array.size} voxels are negative, the smallest is {low:g}."
        )


def narrow_labels(labels: NDArray) -> NDArray[np.integer]:
    """Convert labels to int16 if it holds them, else to int32."""
    fits = not labels.size or labels.max() <= np.iinfo(np.int16).max
    return labels.astype(np.int16 if fits else np.int32)


def convert_labels(path: Path, array: NDArray) -> NDArray[np.integer]:
    """Convert the values of a label map to exact whole numbers, int16 or int32.

    Raises:
        UserError: Some values are fractions, negative, above ``MAX_LABEL``, or real numbers too
            large to be exact.
    """
    _check_lossless(path)
    if array.dtype.kind == "f":
        fractions = array[_find_fractions(array)]
        if fractions.size:
            raise UserError(
                f"{path}: label values must be whole numbers, but {fractions.size} of {array.size} "
                f"voxels are not, the first is {fractions[0]:g}; resample label maps by nearest "
                "neighbour only."
            )
        if array.max() > MAX_FLOAT_LABEL:
            raise UserError(
                f"{path}: has label {array.max():.0f} in a real data type, which is not exact "
                f"above {MAX_FLOAT_LABEL}; store the label map as integers."
            )
        whole = np.rint(array)
        if changed := int((whole != array).sum()):
            log_info(f"{path}: {changed} label values were rounded to the nearest whole number.")
        array = whole
    _check_not_negative(path, "label", array)
    if (high := array.max()) > MAX_LABEL:
        raise UserError(f"{path}: label {high} is above {MAX_LABEL}; renumber the labels.")
    return narrow_labels(array)


def convert_mask(path: Path, array: NDArray) -> NDArray[np.uint8]:
    """Convert the values of a mask to 1 inside and 0 outside.

    Of whole numbers all but 0 are inside; of others, which must lie between 0 and 1 as
    probabilities do, those from 1/2.

    Raises:
        UserError: Some values are negative, or fractions that are no probabilities.
    """
    _check_lossless(path)
    _check_not_negative(path, "mask", array)
    fractions = int(_find_fractions(array).sum()) if array.dtype.kind == "f" else 0
    if fractions and not array.max() <= 1:
        raise UserError(
            f"{path}: {fractions} of {array.size} mask values are not whole numbers, and the "
            f"largest is {array.max():g}; give a mask of 0 and 1, or probabilities."
        )
    if fractions:
        log_info(
            f"{path}: {fractions} of {array.size} mask values lie between 0 and 1; voxels from 0.5 "
            "are inside."
        )
        return (array >= 0.5).astype(np.uint8)
    inside = np.rint(array) > 0 if array.dtype.kind == "f" else array > 0
    if array.dtype.kind != "b" and (high := int(np.rint(array.max()))) > 1:
        log_info(f"{path}: mask values go up to {high}; all voxels that are not 0 are inside.")
    return inside.astype(np.uint8)


def place_on_image_grid(
    volume: Volume,
    path: Path,
    image: Volume,
    image_path: Path,
    convert: Callable[[Path, NDArray], NDArray[Any]],
    trust_array_order: bool = False,
) -> NDArray[Any]:
    """Convert the values of a label map or mask and bring it to the grid of its image.

    ``path`` and ``image_path`` are named in messages; ``convert`` is :func:`convert_labels` or
    :func:`convert_mask`.
    """
    if volume.num_replaced:
        raise UserError(f"{path}: {volume.num_replaced} voxels are NaN or infinite; repair it.")
    grids = [ImageGrid(v.array.shape, v.affine) for v in (volume, image)]
    matrix = match_grids(path, grids[0], image_path, grids[1], trust_array_order)
    array = convert(path, volume.array)
    return array if matrix is None else resample_nearest(array, matrix, image.array.shape)


def _read_annotation(
    convert: Callable[[Path, NDArray], NDArray[Any]],
    path: Path,
    image: Volume,
    image_path: Path,
    phase: int | None = None,
    decoder: Decoder = decode_image,
    trust_array_order: bool = False,
) -> NDArray[Any]:
    """Read a file, or frame ``phase`` of a 4D one, and bring it to the grid of its image."""
    volume = decoder(path)
    frame = select_frame(path, volume, phase if volume.array.ndim == 4 else None)
    return place_on_image_grid(frame, path, image, image_path, convert, trust_array_order)


def read_labels(
    path: Path,
    image: Volume,
    image_path: Path,
    phase: int | None = None,
    decoder: Decoder = decode_image,
    trust_array_order: bool = False,
) -> NDArray[np.integer]:
    """Read the label map of an image, or frame ``phase`` of a 4D one, on the image's grid.

    Args:
        path: Label map.
        image: Image to which it belongs, 2D or 3D.
        image_path: File of the image, named in messages.
        phase: Frame of a 4D label map.
        decoder: Reads a file, or returns it from a cache.
        trust_array_order: See :func:`regnet_lab.data.io.grid_matching.match_grids`.
    """
    return _read_annotation(
        convert_labels, path, image, image_path, phase, decoder, trust_array_order
    )


def read_mask(
    path: Path,
    image: Volume,
    image_path: Path,
    phase: int | None = None,
    decoder: Decoder = decode_image,
    trust_array_order: bool = False,
) -> NDArray[np.uint8]:
    """Read the mask of an image, 1 inside and 0 outside; arguments as in :func:`read_labels`."""
    return _read_annotation(
        convert_mask, path, image, image_path, phase, decoder, trust_array_order
    )
