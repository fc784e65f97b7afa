"""Checks of single cases and of pairs of cases.

Cases are checked by the functions that load them later, on placeholder volumes built from the
statistics of their files.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.datasets.base import DatasetSplit, collect_errors
from regnet_lab.data.io.cases import extract_slice, read_case
from regnet_lab.data.io.grid_matching import compute_corners, match_grids
from regnet_lab.data.io.images import Volume, extract_frame
from regnet_lab.data.io.landmarks import find_points_outside, read_landmarks
from regnet_lab.data.validation.image_stats import CaseFile, ImageStats, StatsByFile
from regnet_lab.errors import UserError
from regnet_lab.spatial.image_grid import ImageGrid

MIN_OVERLAP = 0.25  # share of the smaller field of view that two images must have in common


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
    annotations = (("labels", case.labels), ("mask", case.mask))
    return [("image", case.image), *((kind, path) for kind, path in annotations if path)]


def get_stats(stats_by_file: StatsByFile, kind: str, path: Path) -> ImageStats:
    """Return the statistics of a file, or raise the error found when it was read."""
    stats = stats_by_file[kind, path]
    if isinstance(stats, UserError):
        raise stats
    return stats


def check_case(
    case: Case, stats_by_file: StatsByFile, trust_array_order: bool = False
) -> CaseSummary:
    """Check the image, labels, mask and landmarks of a case.

    ``trust_array_order`` is that of :func:`regnet_lab.data.io.grid_matching.match_grids`.
    """
    errors: list[str] = []
    image = frame_volume = volume = labels = num_points = None
    with collect_errors(errors):
        image = get_stats(stats_by_file, "image", case.image)
        frame_volume = extract_frame(case.image, image.placeholder, case.phase)
        volume = extract_slice(case, frame_volume)
    if case.labels:
        with collect_errors(errors):
            labels = get_stats(stats_by_file, "labels", case.labels)
            check_grid(case, case.labels, labels, frame_volume, trust_array_order)
    if case.mask:
        with collect_errors(errors):
            mask = get_stats(stats_by_file, "mask", case.mask)
            check_grid(case, case.mask, mask, frame_volume, trust_array_order)
            if not mask.counts.keys() - {0}:
                raise UserError(f"{case.mask}: is 0 everywhere; a mask must select some voxels.")
    if case.points:
        with collect_errors(errors):
            whole = image.placeholder if image else None
            num_points = check_landmarks(case, case.points, whole, volume)
    return CaseSummary(image, volume, labels, num_points, tuple(errors))


def check_grid(
    case: Case,
    path: Path,
    stats: ImageStats,
    image: Volume | None,
    trust_array_order: bool,
) -> None:
    """Check that a label map or mask can be brought to the grid of its image."""
    volume = extract_frame(path, stats.placeholder, case.phase if len(stats.shape) == 4 else None)
    if image is not None:
        grids = [ImageGrid(v.array.shape, v.affine) for v in (volume, image)]
        match_grids(path, grids[0], case.image, grids[1], trust_array_order)


def check_landmarks(
    case: Case, landmarks: LandmarkFile, whole: Volume | None, image: Volume | None
) -> int:
    """Check that the landmarks of a case lie inside its image and return their number.

    ``whole`` is the placeholder of the image file and ``image`` the same after phase and slice were
    selected; without a readable image only the file itself is checked.
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


def check_cases(
    cases: Sequence[Case], stats_by_file: StatsByFile, subsets: Sequence[DatasetSplit]
) -> dict[Case, CaseSummary]:
    """Check each case on its own, and whether it has as many axes as the grid of its data set or,
    without one, as most cases.
    """
    trusted = {
        case
        for subset in subsets
        if subset.preprocessor and subset.preprocessor.trust_array_order
        for case in subset.cases
    }
    summaries = {case: check_case(case, stats_by_file, case in trusted) for case in cases}
    for subset in subsets:
        axes = {case: v.array.ndim for case in subset.cases if (v := summaries[case].volume)}
        counts = Counter(axes.values())
        expected = len(subset.shape or ())
        if expected not in counts:
            expected = max(counts, key=counts.__getitem__, default=0)
        for case, ndim in axes.items():
            if ndim != expected:
                error = f"{case.image}: has {ndim} axes, but this data set has {expected}."
                errors = (*summaries[case].errors, error)
                summaries[case] = replace(summaries[case], errors=errors)
    return summaries


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
    subset: DatasetSplit, summaries: Mapping[Case, CaseSummary]
) -> Iterator[str]:
    """Find images that hardly overlap their partners, if pairs meet in world coordinates."""
    in_world = getattr(subset.preprocessor, "needs_fixed", False)
    volumes: dict[int, dict[tuple[Path, Path], tuple[Volume, Volume]]] = {2: {}, 3: {}}
    for fixed, moving in subset.case_pairs if in_world else ():
        first, second = summaries[fixed].volume, summaries[moving].volume
        if first and second and first.array.ndim == second.array.ndim:
            volumes[first.array.ndim][fixed.image, moving.image] = first, second
    disjoint: dict[tuple[Path, Path], float] = {}
    for pairs in filter(None, volumes.values()):
        overlaps = zip(pairs, compute_overlaps(*zip(*pairs.values(), strict=True)), strict=True)
        disjoint |= {paths: share for paths, share in overlaps if share < MIN_OVERLAP}
    while disjoint:
        path = Counter(chain.from_iterable(disjoint)).most_common(1)[0][0]
        affected = {paths: share for paths, share in disjoint.items() if path in paths}
        paths, share = min(affected.items(), key=lambda item: item[1])
        partner = paths[1] if paths[0] == path else paths[0]
        yield (
            f"{path}: hardly overlaps its partners in world coordinates in {len(affected)} pairs, "
            f"such as {partner}, with which it shares {100 * share:.0f} % of the smaller field of "
            "view; check origin and orientation, or prepare with CropOrPad."
        )
        disjoint = {paths: s for paths, s in disjoint.items() if paths not in affected}
