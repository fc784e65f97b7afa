"""Reading of a case: image, labels, mask and landmarks on the image's own grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.io.images import Decoder, Volume, decode_image, extract_frame
from regnet_lab.data.io.labels import read_labels, read_mask
from regnet_lab.data.io.landmarks import check_landmark_positions, read_landmarks
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
        mask: (*spatial), 1 where the image is valid and 0 elsewhere.
        points: (N, D) landmarks.
    """

    image: NDArray[np.float32]
    affine: coordinates.Matrix
    labels: NDArray[np.integer] | None = None
    mask: NDArray[np.integer] | None = None
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


def read_case(
    case: Case, decoder: Decoder = decode_image, trust_array_order: bool = False
) -> LoadedCase:
    """Read all files of a case; ``decoder`` decodes an image, or returns it from a cache.

    Labels and mask are brought to the grid of the image
    (:func:`regnet_lab.data.io.grid_matching.match_grids`).
    """
    volume = extract_frame(case.image, decoder(case.image), case.phase)
    options = volume, case.image, case.phase, decoder, trust_array_order

    def slice_array(array: NDArray) -> NDArray:
        return extract_slice(case, Volume(array, volume.affine)).array

    image = extract_slice(case, volume)
    labels = slice_array(read_labels(case.labels, *options)) if case.labels else None
    mask = slice_array(read_mask(case.mask, *options)) if case.mask else None
    points = None
    if case.points:
        points = read_landmarks(case.points, image.affine)
        if points.shape[1] != image.array.ndim:
            raise UserError(
                f"{case.points.path}: gives {points.shape[1]} coordinates for each landmark, "
                f"but the image {case.image} has {image.array.ndim} axes; choose as many columns."
            )
        check_landmark_positions(case.points, points, case.image, image.array.shape, image.affine)
    return LoadedCase(image.array, image.affine, labels, mask, points)


def fingerprint_case(case: Case) -> str:
    """Compute a hash of the contents of a case's files and of the part it selects."""
    files = [path and hash_image(path) for path in (case.image, case.labels, case.mask)]
    table = case.points
    points = table and (hash_file(table.path), table.columns, table.space, table.scale)
    return compute_fingerprint(files, points, case.phase, case.slice)
