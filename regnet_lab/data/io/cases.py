"""A case as its files say: image, labels, mask and landmarks together on the image's own grid."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.io.formats import files_of
from regnet_lab.data.io.images import Volume, decode, frame, whole_numbers
from regnet_lab.data.io.landmarks import read_points
from regnet_lab.data.preprocessing.cache import content, fingerprint
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

Decoder = Callable[[Path], Volume]


@dataclass(frozen=True)
class Scan:
    """What a case holds, all of it in voxels of its image; ``affine`` (4, 4) leads to RAS+ mm."""

    image: NDArray[np.float32]
    affine: coordinates.Matrix
    labels: NDArray[np.int16] | None = None
    mask: NDArray[np.int16] | None = None
    points: NDArray[np.float32] | None = None


def slice_of(case: Case, volume: Volume) -> Volume:
    """The case's slice of a 3D volume, or the volume if it asks for none.

    Raises:
        UserError: There is no such slice.
    """
    if case.slice is None:
        return volume
    array = np.atleast_3d(volume.array)
    depth = array.shape[2]
    index = int(case.slice * depth) if isinstance(case.slice, float) else case.slice
    if not 0 <= index < depth:
        raise UserError(f"{case.image}: has {depth} slices, so there is no slice {case.slice}.")
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * index
    return Volume(array[:, :, index], affine)


def _landmarks(case: Case, image: Volume) -> NDArray[np.float32] | None:
    if case.points is None:
        return None
    points = read_points(case.points, image.affine)
    if points.shape[1] != image.array.ndim:
        raise UserError(
            f"{case.points.path}: gives {points.shape[1]} coordinates for each landmark, "
            f"but the image {case.image} has {image.array.ndim} axes."
        )
    return points


def read_scan(case: Case, decoder: Decoder = decode) -> Scan:
    """Read all files of a case.

    Args:
        case: Its files.
        decoder: Reads an image file, or remembers it.

    Raises:
        UserError: A file is missing, damaged or does not fit the image.
    """
    volume = frame(case.image, decoder(case.image), case.phase)

    def belonging(path: Path | None) -> NDArray[np.int16] | None:
        if path is None:
            return None
        found = decoder(path)
        found = frame(path, found, case.phase if found.array.ndim == 4 else None)
        whole = whole_numbers(path, found, volume, case.image)
        return slice_of(case, Volume(whole, found.affine)).array

    image = slice_of(case, volume)
    return Scan(
        image.array,
        image.affine,
        belonging(case.labels),
        belonging(case.mask),
        _landmarks(case, image),
    )


def identity(case: Case) -> str:
    """Hash of everything a case says and of the bytes of its files.

    Raises:
        UserError: A file is missing.
    """
    files = [
        [content(file) for file in files_of(path)] if path else None
        for path in (case.image, case.labels, case.mask)
    ]
    points = case.points and (
        content(case.points.path),
        case.points.columns,
        case.points.space,
        case.points.scale,
    )
    return fingerprint(files, points, case.phase, case.slice)
