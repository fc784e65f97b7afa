"""What can be wrong between the cases of a data set: names, leakage, labels, files, memory."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import Couple, Listing
from regnet_lab.data.preprocessing.grids import factors
from regnet_lab.data.validation.case_checks import Look, items_of
from regnet_lab.data.validation.image_stats import Facts, Known

SHOWN = 3  # examples named in a sentence


def repeated_names(listings: Sequence[Listing]) -> Iterator[str]:
    """Names that stand for more than one image."""
    images: dict[tuple[str, str], dict[Path, None]] = {}
    for listing in listings:
        for case in listing.cases:
            images.setdefault((listing.part, case.name), {})[case.image] = None
    for (_, name), paths in images.items():
        if len(paths) > 1:
            yield f"{some(paths)}: are all named '{name}'; give every case a name of its own."


def some(things: Mapping | Sequence) -> str:
    """The first few of several things."""
    more = len(things) - SHOWN
    return ", ".join(map(str, list(things)[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def same_pairs(listing: Listing, listings: Sequence[Listing]) -> bool:
    """Whether the pairs of a listing are wittingly trained on, all of them."""
    trained = [other for other in listings if other.split == "train"]
    return bool(listing.pairs) and any(listing.pairs == other.pairs for other in trained)


def shared_pairs(listings: Sequence[Listing]) -> Iterator[str]:
    """Splits that consist of the very pairs that are trained on."""
    for listing in listings:
        if listing.split != "train" and same_pairs(listing, listings):
            yield f"{listing.title}: its pairs are the very ones that are trained on."


def targets(listings: Sequence[Listing]) -> set[Path]:
    """Images that are the fixed one of all pairs, as an atlas is."""
    fixed = [{fixed.image for fixed, _ in listing.pairs} for listing in listings]
    return {path for paths in fixed if len(paths) == 1 for path in paths}


def digest_of(known: Known, path: Path) -> str:
    """What is the same in two images with the same voxels."""
    facts = known["image", path]
    return facts.digest if isinstance(facts, Facts) else str(path)


def leaks(listings: Sequence[Listing], known: Known) -> Iterator[str]:
    """Images that are both trained on and judged, by name or by content; but for an atlas."""
    trained = [listing for listing in listings if listing.split == "train"]
    judged = [one for one in listings if one.split != "train" and not same_pairs(one, listings)]
    atlas = targets(trained) & targets(judged)
    seen = {path for listing in trained for path in listing.images if path not in atlas}
    contents = {digest_of(known, path): path for path in seen}
    splits: dict[Path, list[str]] = {}
    for listing in judged:
        for path in listing.images:
            splits.setdefault(path, []).append(listing.title)
    for path, titles in splits.items():
        twin = contents.get(digest_of(known, path))
        if twin and path not in atlas:
            what = "is" if path in seen else f"has the voxels of {twin}, which is"
            yield f"{path}: {what} trained on, and judged in {' and '.join(titles)}; choose one."


def twins(listings: Sequence[Listing], known: Known) -> Iterator[str]:
    """Images of one split that have the same voxels."""
    found: dict[tuple[str, str], dict[Path, None]] = {}
    for listing in listings:
        for path in listing.images:
            found.setdefault((listing.split, digest_of(known, path)), {})[path] = None
    for paths in found.values():
        if len(paths) > 1:
            yield f"{some(paths)}: have the same voxels."


def label_counts(
    listings: Sequence[Listing], looks: Mapping[Case, Look]
) -> dict[Path, dict[int, int]]:
    """Voxels of each label in the label maps of listings."""
    cases = chain.from_iterable(listing.cases for listing in listings)
    labelled = [(case.labels, looks[case].labels) for case in cases]
    return {path: facts.counts for path, facts in labelled if path and facts}


def selected(labels: Iterable[int], listing: Listing) -> list[int]:
    """The labels that the preparation keeps, those of its groups included."""
    wanted = getattr(listing.prepare, "labels", None)
    if wanted is None:
        return sorted(labels)
    groups = wanted.values() if isinstance(wanted, Mapping) else wanted
    return [label for label in sorted(labels) if any(label in np.ravel(g) for g in groups)]


def uncommon_labels(listings: Sequence[Listing], looks: Mapping[Case, Look]) -> Iterator[str]:
    """Labels of use that only some of the label maps of a data set have."""
    for part in dict.fromkeys(listing.part for listing in listings):
        own = [listing for listing in listings if listing.part == part]
        maps = label_counts(own, looks)
        for label in selected(set().union(*maps.values()) - {0}, own[0]):
            having = [path for path, counts in maps.items() if label in counts]
            lacking = [path for path, counts in maps.items() if label not in counts]
            few, what = (
                (having, "only in") if len(having) < len(lacking) else (lacking, "missing from")
            )
            if few:
                share = f"{len(few)} of {len(maps)} label maps"
                yield f"label {label} is {what} {share}: {some(few)}."


def extra_files(cases: Sequence[Case]) -> Iterator[str]:
    """Files beside those of the cases, of the same kind, that belong to none."""
    listed = {path.absolute() for case in cases for _, path in items_of(case)}
    kinds = {(path.parent, path.suffix) for path in listed if path.is_file()}
    beside = {path for folder, end in kinds for path in folder.glob(f"*{end}")} - listed
    if beside:
        yield f"{some(sorted(beside))}: beside the files of the cases, but belonging to none."


def cached_bytes(pairs: Sequence[Couple], looks: Mapping[Case, Look], prepare: Any) -> float:
    """Bytes of the prepared sides of pairs, and of decoded files that several of them share."""
    bound = getattr(prepare, "needs_fixed", False) or getattr(prepare, "shared_range", False)
    entries = {(side, two[0] if bound else side) for two in pairs for side in two}
    files: dict[Path, int] = {}
    size = 0.0
    for case, fixed in entries:
        voxels = 4 + 2 * bool(case.labels) + 4 * bool(case.mask)  # float32, int16, float32
        size += voxels * grid_size(looks[fixed], prepare)
        if getattr(prepare, "needs_fixed", False) or (case.phase, case.slice) != (None, None):
            files[case.image] = looks[case].image.nbytes  # type: ignore[union-attr]
    return size + sum(files.values())


def grid_size(look: Look, prepare: Any) -> float:
    """Voxels of the grid on which a case, or what moves to it, is prepared."""
    volume: Any = look.volume
    own, shape = volume.array.shape, getattr(prepare, "shape", None)
    if shape:
        return math.prod((*shape, *own[len(shape) :]))
    return math.prod(own / factors(getattr(prepare, "spacing", None), volume.spacing))


def megabytes(listing: Listing, looks: Mapping[Case, Look]) -> float:
    """Memory that the sound pairs of a listing take in a cache."""
    sound = [two for two in listing.pairs if not any(looks[case].faults for case in two)]
    return cached_bytes(sound, looks, listing.prepare) / 1e6
