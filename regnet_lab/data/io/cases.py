"""Reading of a case: image, labels, mask and landmarks on the image's own grid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.io.images import Decoder, Volume, decode_image, extract_frame, read_labels
from regnet_lab.data.io.landmarks import read_landmarks
from regnet_lab.data.preprocessing.cache import compute_fingerprint, hash_file, hash_image
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates


@dataclass(frozen=True)
class LoadedCase:
    """The arrays of a case, all in voxels of its image.

    Args:
        image: (*spatial).
        affine: (4, 4) from voxels to millimetres, RAS+.
        labels: (*spatial) label map.
        mask: (*spatial), non-zero where the image is valid.
        points: (N, D) landmarks.
    """

    image: NDArray[np.float32]
    affine: coordinates.Matrix
    labels: NDArray[np.int16] | None = None
    mask: NDArray[np.int16] | None = None
    points: NDArray[np.float32] | None = None


def extract_slice(case: Case, volume: Volume) -> Volume:
    """Return the slice of a 3D volume that a case selects, or the volume if it selects none."""
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


def read_case(case: Case, decoder: Decoder = decode_image) -> LoadedCase:
    """Read all files of a case; ``decoder`` decodes an image, or returns it from a cache."""
    volume = extract_frame(case.image, decoder(case.image), case.phase)

    def read_slice(path: Path | None) -> NDArray[np.int16] | None:
        if path is None:
            return None
        labels = read_labels(path, volume, case.image, case.phase, decoder)
        return extract_slice(case, Volume(labels, volume.affine)).array

    image = extract_slice(case, volume)
    labels, mask = read_slice(case.labels), read_slice(case.mask)
    points = None
    if case.points:
        points = read_landmarks(case.points, image.affine)
        if points.shape[1] != image.array.ndim:
            raise UserError(
                f"{case.points.path}: gives {points.shape[1]} coordinates for each landmark, "
                f"but the image {case.image} has {image.array.ndim} axes."
            )
    return LoadedCase(image.array, image.affine, labels, mask, points)


def fingerprint_case(case: Case) -> str:
    """Compute a hash of the contents of a case's files and of the part it selects."""
    files = [path and hash_image(path) for path in (case.image, case.labels, case.mask)]
    table = case.points
    points = table and (hash_file(table.path), table.columns, table.space, table.scale)
    return compute_fingerprint(files, points, case.phase, case.slice)
