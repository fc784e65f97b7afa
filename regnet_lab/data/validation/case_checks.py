"""Checks of single cases and of pairs of cases.

Cases are checked by the functions that load them later, on placeholder volumes built from the
statistics of their files.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case, CasePair, LandmarkFile
from regnet_lab.data.datasets.base import DatasetSplit, collect_errors
from regnet_lab.data.io.cases import extract_slice, read_case
from regnet_lab.data.io.images import Volume, extract_frame, validate_labels
from regnet_lab.data.io.landmarks import find_points_outside, read_landmarks
from regnet_lab.data.validation.image_stats import CaseFile, ImageStats, StatsByFile
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

MIN_OVERLAP = 0.25  # share of the smaller field of view that two images must have in common
MAX_HEADER_SHIFT = 0.5  # voxels between the corners of a label map and those of its image
FORMATS_WITHOUT_AFFINE = (".npy",)


@dataclass(frozen=True)
class CaseSummary:
    """Summary of one case; what could not be read is None.

    Args:
        image: Statistics of the image file.
        volume: Placeholder of the image, after its phase and slice were selected.
        labels: Statistics of the label map.
        num_points: Number of landmarks.
        errors: One sentence per problem.
    """

    image: ImageStats | None
    volume: Volume | None
    labels: ImageStats | None
    num_points: int | None
    errors: tuple[str, ...]


def list_case_files(case: Case) -> list[CaseFile]:
    """Return the image, label map and mask of a case."""
    annotations = [("labels", path) for path in (case.labels, case.mask) if path]
    return [("image", case.image), *annotations]


def get_stats(stats_by_file: StatsByFile, kind: str, path: Path) -> ImageStats:
    """Return the statistics of a file, or raise the error found when it was read."""
    stats = stats_by_file[kind, path]
    if isinstance(stats, UserError):
        raise stats
    return stats


def check_case(case: Case, stats_by_file: StatsByFile) -> CaseSummary:
    """Check the image, labels, mask and landmarks of a case."""
    errors: list[str] = []
    image = frame_volume = volume = labels = num_points = None
    with collect_errors(errors):
        image = get_stats(stats_by_file, "image", case.image)
        frame_volume = extract_frame(case.image, image.placeholder, case.phase)
        volume = extract_slice(case, frame_volume)
    if case.labels:
        with collect_errors(errors):
            labels = check_grid(case, case.labels, stats_by_file, frame_volume)
    if case.mask:
        with collect_errors(errors):
            if not check_grid(case, case.mask, stats_by_file, frame_volume).counts.keys() - {0}:
                raise UserError(f"{case.mask}: is 0 everywhere; a mask must select some voxels.")
    if case.points:
        with collect_errors(errors):
            whole = image.placeholder if image else None
            num_points = check_landmarks(case, case.points, whole, volume)
    return CaseSummary(image, volume, labels, num_points, tuple(errors))


def check_grid(
    case: Case, path: Path, stats_by_file: StatsByFile, image: Volume | None
) -> ImageStats:
    """Check that a label map or mask lies on the image's grid and return its statistics.

    Raises:
        UserError: The file is damaged, or its shape or affine differs from the image's.
    """
    stats = get_stats(stats_by_file, "labels", path)
    volume = extract_frame(path, stats.placeholder, case.phase if len(stats.shape) == 4 else None)
    if image is None:
        return stats
    if volume.array.shape != image.array.shape:
        validate_labels(path, volume, image, case.image)
    distance = compute_corner_shift(image, volume)
    if distance > MAX_HEADER_SHIFT and not {path.suffix, case.image.suffix} & {
        *FORMATS_WITHOUT_AFFINE
    }:
        raise UserError(
            f"{path}: its header shifts it by up to {distance:.3g} voxels relative to its image "
            f"{case.image}; correct one of the two headers."
        )
    return stats


def compute_corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the (2^D, D) outer corners of a voxel grid."""
    return np.array(list(product(*((-0.5, n - 0.5) for n in shape))))


def compute_corner_shift(image: Volume, labels: Volume) -> float:
    """Return the largest distance between corresponding corners, in voxels of the labels."""
    corners = compute_corners(image.array.shape)
    corners = np.pad(corners, ((0, 0), (0, 3 - image.array.ndim)))
    moved = coordinates.apply_affine(np.linalg.inv(labels.affine) @ image.affine, corners)
    return float(np.linalg.norm(moved - corners, axis=1).max())


def check_landmarks(
    case: Case, landmarks: LandmarkFile, whole: Volume | None, image: Volume | None
) -> int:
    """Check the landmarks of a case and return their number.

    Without a readable image only the file itself is checked.

    Args:
        case: The case.
        landmarks: Its landmark file.
        whole: Placeholder of the image file.
        image: The same after phase and slice were selected.

    Raises:
        UserError: The file is damaged, or a landmark lies outside the image.
    """
    if whole is None or image is None:
        return len(read_landmarks(landmarks, np.eye(4)))
    scan = read_case(replace(case, labels=None, mask=None), lambda _: whole)
    points: NDArray[np.float32] = np.asarray(scan.points)
    indices = find_points_outside(points, image.array.shape).nonzero()[0]
    if indices.size:
        first = ", ".join(f"{x:.4g}" for x in points[indices[0]])
        raise UserError(
            f"{landmarks.path}: {indices.size} of {len(points)} landmarks lie outside the image "
            f"{case.image} of shape {image.array.shape}, the first is number {indices[0] + 1} "
            f"at voxel ({first}); check columns, space and scale."
        )
    return len(points)


def find_dimension_mismatches(
    dataset_split: DatasetSplit, summaries: Mapping[Case, CaseSummary]
) -> Iterator[tuple[Case, str]]:
    """Find cases whose number of axes differs from the grid's or, without one, from most cases'."""
    axes = {case: v.array.ndim for case in dataset_split.cases if (v := summaries[case].volume)}
    counts = Counter(axes.values())
    expected = len(dataset_split.shape or ())
    if expected not in counts:
        expected = max(counts, key=counts.__getitem__, default=0)
    for case, ndim in axes.items():
        if ndim != expected:
            yield case, f"{case.image}: has {ndim} axes, but this data set has {expected}."


def find_landmark_mismatches(
    pairs: Sequence[CasePair], summaries: Mapping[Case, CaseSummary]
) -> Iterator[str]:
    """Find pairs whose images have different numbers of landmarks."""
    for fixed, moving in pairs:
        counts = summaries[fixed].num_points, summaries[moving].num_points
        if fixed.points and moving.points and None not in counts and counts[0] != counts[1]:
            yield (
                f"{fixed.points.path} has {counts[0]} landmarks, "
                f"but {moving.points.path} has {counts[1]}."
            )


def compute_overlaps(fixed: Sequence[Volume], moving: Sequence[Volume]) -> NDArray[np.float64]:
    """Compute the overlap of the fields of view of N pairs, as a share of the smaller one.

    The moving field of view is replaced by its bounding box along the fixed image's axes. All
    volumes have D axes; the planes of 2D images are projected onto each other.

    >>> shifted = np.eye(4)
    >>> shifted[0, 3] = 1.0
    >>> volumes = [Volume(np.zeros((4, 6)), affine) for affine in (np.eye(4), shifted)]
    >>> compute_overlaps(volumes[:1], volumes[1:])
    array([0.75])
    """
    sizes = np.array([volume.array.shape for volume in fixed], float)
    ndim = sizes.shape[1]
    inverse = np.linalg.inv([volume.affine for volume in fixed])
    matrices = inverse @ np.array([volume.affine for volume in moving])
    linear, offset = matrices[:, :ndim, :ndim], matrices[:, None, :ndim, 3]
    corners = np.array([compute_corners(volume.array.shape) for volume in moving])
    corners = corners @ linear.transpose(0, 2, 1) + offset  # (N, 2^D, D) voxels of the fixed image
    low, high = corners.min(1).clip(-0.5), np.minimum(corners.max(1), sizes - 0.5)
    shared = (high - low).clip(0).prod(1)
    moving_size = [volume.array.size for volume in moving] * abs(np.linalg.det(linear))
    smaller = np.minimum(sizes.prod(1), moving_size)
    return np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0).clip(max=1)


def find_disjoint_images(
    dataset_split: DatasetSplit, summaries: Mapping[Case, CaseSummary]
) -> Iterator[str]:
    """Find images that hardly overlap their partners, if pairs meet in world coordinates."""
    in_world = dataset_split.preprocessor is not None and dataset_split.preprocessor.needs_fixed
    disjoint: dict[tuple[Path, Path], float] = {}
    for ndim in (2, 3):
        volumes: dict[tuple[Path, Path], tuple[Volume, Volume]] = {}
        for fixed, moving in dataset_split.case_pairs if in_world else ():
            first, second = summaries[fixed].volume, summaries[moving].volume
            if first and second and first.array.ndim == second.array.ndim == ndim:
                volumes[fixed.image, moving.image] = first, second
        if volumes:
            overlaps = compute_overlaps(*map(list, zip(*volumes.values(), strict=True)))
            shares = zip(volumes, overlaps, strict=True)
            disjoint |= {paths: share for paths, share in shares if share < MIN_OVERLAP}
    while disjoint:
        path = Counter(chain.from_iterable(disjoint)).most_common(1)[0][0]
        affected = {paths: share for paths, share in disjoint.items() if path in paths}
        (fixed_path, moving_path), share = min(affected.items(), key=lambda item: item[1])
        partner = moving_path if fixed_path == path else fixed_path
        yield (
            f"{path}: hardly overlaps its partners in world coordinates in {len(affected)} pairs, "
            f"such as {partner}, with which it shares {100 * share:.0f} % of the smaller field of "
            "view; check origin and orientation, or prepare with CropOrPad."
        )
        disjoint = {paths: s for paths, s in disjoint.items() if paths not in affected}
