"""What can be wrong with one case and with a pair of them, a sentence each.

Cases are checked from the facts of their files, on hollow volumes of the same shapes and by the
functions that load them later.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import Couple, Listing, noted
from regnet_lab.data.io.cases import read_scan, slice_of
from regnet_lab.data.io.images import Volume, frame, whole_numbers
from regnet_lab.data.io.landmarks import outside, read_points
from regnet_lab.data.validation.image_stats import Facts, Item, Known
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

OVERLAP = 0.25  # of the smaller box, below which two images hardly share any space
SHIFT = 0.5  # voxels by which a label map may lie beside its image
WORLDLESS = (".npy",)  # formats that say nothing of the world


@dataclass(frozen=True)
class Look:
    """What a look at a case shows; what could not be read is None.

    Args:
        image: Facts of its image's file.
        volume: A hollow one in place of the image, after phase and slice were taken.
        labels: Facts of its label map.
        points: Number of its landmarks.
        faults: What is wrong.
    """

    image: Facts | None
    volume: Volume | None
    labels: Facts | None
    points: int | None
    faults: tuple[str, ...]


def items_of(case: Case) -> list[Item]:
    """The files of voxels of a case."""
    belonging = [("labels", path) for path in (case.labels, case.mask) if path]
    return [("image", case.image), *belonging]


def certain(known: Known, kind: str, path: Path) -> Facts:
    """The facts of a file.

    Raises:
        UserError: It has none.
    """
    facts = known[kind, path]
    if isinstance(facts, UserError):
        raise facts
    return facts


def look_at(case: Case, known: Known) -> Look:
    """Check everything about a case."""
    faults: list[str] = []
    image = whole = volume = labels = points = None
    with noted(faults):
        image = certain(known, "image", case.image)
        whole = frame(case.image, image.hollow, case.phase)
        volume = slice_of(case, whole)
    if case.labels:
        with noted(faults):
            labels = belonging(case, case.labels, known, whole)
    if case.mask:
        with noted(faults):
            if not belonging(case, case.mask, known, whole).counts.keys() - {0}:
                raise UserError(f"{case.mask}: is 0 everywhere; a mask must leave some voxels.")
    if case.points:
        with noted(faults):
            points = len(landmarks(case, image.hollow if image else None, volume))
    return Look(image, volume, labels, points, tuple(faults))


def belonging(case: Case, path: Path, known: Known, image: Volume | None) -> Facts:
    """The facts of a label map or mask that lies on the image's grid.

    Raises:
        UserError: It is damaged, or has not the shape of the image or its place in the world.
    """
    facts = certain(known, "labels", path)
    volume = frame(path, facts.hollow, case.phase if len(facts.shape) == 4 else None)
    if image is None:
        return facts
    if volume.array.shape != image.array.shape:
        whole_numbers(path, volume, image, case.image)
    distance = shift(image, volume)
    if distance > SHIFT and not {path.suffix, case.image.suffix} & {*WORLDLESS}:
        raise UserError(
            f"{path}: its header places it up to {distance:.3g} voxels beside its image "
            f"{case.image}; make both headers say the same."
        )
    return facts


def corners(shape: Sequence[int]) -> NDArray[np.float64]:
    """(2^D, D) outermost corners of a grid of cells."""
    return np.array(list(product(*((-0.5, n - 0.5) for n in shape))))


def shift(image: Volume, labels: Volume) -> float:
    """How far apart two volumes of one shape put a corner, in voxels of the labels."""
    box = np.pad(corners(image.array.shape), ((0, 0), (0, 3 - image.array.ndim)))
    moved = coordinates.transform(np.linalg.inv(labels.affine) @ image.affine, box)
    return float(np.linalg.norm(moved - box, axis=1).max())


def landmarks(case: Case, whole: Volume | None, image: Volume | None) -> NDArray[np.float32]:
    """The landmarks of a case, as numbers at least where its image could not be read.

    Raises:
        UserError: They are damaged, or some lie outside the image.
    """
    if whole is None or image is None:
        return read_points(case.points, np.eye(4))  # type: ignore[arg-type]
    alone = replace(case, labels=None, mask=None)
    points: NDArray[np.float32] = read_scan(alone, lambda _: whole).points  # type: ignore
    lost = outside(points, image.array.shape).nonzero()[0]
    if lost.size:
        first = ", ".join(f"{x:.4g}" for x in points[lost[0]])
        raise UserError(
            f"{case.points.path}: {lost.size} of {len(points)} landmarks lie outside the image "  # type: ignore[union-attr]
            f"{case.image} of shape {image.array.shape}, the first of them number {lost[0] + 1} "
            f"at voxel ({first}); check columns, space and scale."
        )
    return points


def odd_dimensions(listing: Listing, looks: Mapping[Case, Look]) -> Iterator[tuple[Case, str]]:
    """Cases that have not as many axes as the grid, or as most others where none has."""
    axes = {case: v.array.ndim for case in listing.cases if (v := looks[case].volume)}
    counts = Counter(axes.values())
    wanted = len(listing.shape or ())
    if wanted not in counts:
        wanted = max(counts, key=counts.__getitem__, default=0)
    for case, own in axes.items():
        if own != wanted:
            yield case, f"{case.image}: has {own} axes, but this data set has {wanted}."


def unequal_landmarks(pairs: Sequence[Couple], looks: Mapping[Case, Look]) -> Iterator[str]:
    """Pairs whose images have not the same number of landmarks."""
    for fixed, moving in pairs:
        counts = looks[fixed].points, looks[moving].points
        if None not in counts and counts[0] != counts[1]:
            yield (
                f"{fixed.points.path} has {counts[0]} landmarks, "  # type: ignore[union-attr]
                f"but {moving.points.path} has {counts[1]}."  # type: ignore[union-attr]
            )


def overlaps(fixed: Sequence[Volume], moving: Sequence[Volume]) -> NDArray[np.float64]:
    """Share of the smaller of two boxes in the world that both have, for each of N pairs.

    The moving box is taken as large as the fixed image's axes bound it.  All have D axes; the
    planes of 2D images are projected onto each other.
    """
    sizes = np.array([volume.array.shape for volume in fixed], float)
    ndim = sizes.shape[1]
    inverse = np.linalg.inv([volume.affine for volume in fixed])
    matrices = inverse @ np.array([volume.affine for volume in moving])
    linear, offset = matrices[:, :ndim, :ndim], matrices[:, None, :ndim, 3]
    boxes = np.array([corners(volume.array.shape) for volume in moving])
    boxes = boxes @ linear.transpose(0, 2, 1) + offset  # (N, 2^D, D) voxels of the fixed image
    low, high = boxes.min(1).clip(-0.5), np.minimum(boxes.max(1), sizes - 0.5)
    shared = (high - low).clip(0).prod(1)
    own = [volume.array.size for volume in moving] * abs(np.linalg.det(linear))
    smaller = np.minimum(sizes.prod(1), own)
    return np.divide(shared, smaller, out=np.zeros_like(shared), where=smaller > 0).clip(max=1)


def apart(listing: Listing, looks: Mapping[Case, Look]) -> Iterator[str]:
    """Images that share hardly any of the world with their partners, if that is where they meet."""
    pairs = listing.pairs if getattr(listing.prepare, "needs_fixed", False) else []
    apart: dict[tuple[Path, Path], float] = {}
    for ndim in (2, 3):
        both = {
            (fixed.image, moving.image): volumes
            for fixed, moving in pairs
            if all(volumes := (looks[fixed].volume, looks[moving].volume))
            and {volume.array.ndim for volume in volumes if volume} == {ndim}
        }
        shares = overlaps(*zip(*both.values(), strict=True)) if both else []  # type: ignore
        apart |= {two: s for two, s in zip(both, shares, strict=True) if s < OVERLAP}
    while apart:
        path = Counter(chain.from_iterable(apart)).most_common(1)[0][0]
        own = {two: share for two, share in apart.items() if path in two}
        (fixed, moving), share = min(own.items(), key=lambda item: item[1])
        partner = moving if fixed == path else fixed
        yield (
            f"{path}: lies elsewhere in the world than its partners in {len(own)} pairs, such as "
            f"{partner}, with which it shares {100 * share:.0f} % of the smaller box; check origin "
            "and orientation, or prepare with CentredGrid."
        )
        apart = {two: share for two, share in apart.items() if two not in own}
