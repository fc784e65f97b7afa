"""What is wrong with a data set, all of it in one pass, before hours are spent on it.

A data set that lists its files, by an attribute ``pairs`` of cases as :class:`CasePairs` has it,
is examined file by file; of any other a few items are looked at.  A mixture names its ``parts``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import Listing, list_all, noted
from regnet_lab.data.io.landmarks import outside
from regnet_lab.data.validation.case_checks import (
    Look,
    apart,
    items_of,
    look_at,
    odd_dimensions,
    unequal_landmarks,
)
from regnet_lab.data.validation.dataset_checks import (
    extra_files,
    leaks,
    megabytes,
    repeated_names,
    shared_pairs,
    twins,
    uncommon_labels,
)
from regnet_lab.data.validation.image_stats import Known, gather
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
ITEMS = 3  # of a split, looked at
NEEDED = ("fixed", "moving", "spacing", "name")


@dataclass(frozen=True)
class Checkup:
    """What an examination found.

    Args:
        listings: The data sets, by split and part.
        looks: What each case showed.
        items: The items of a listing that were looked at.
        megabytes: Memory that the sound pairs of a listing take in a cache.
        faults: Sentences that forbid training.
        warnings: Sentences that do not.
    """

    listings: Sequence[Listing]
    looks: Mapping[Case, Look]
    items: Mapping[Listing, Sequence[Pair]]
    megabytes: Mapping[Listing, float]
    faults: Sequence[str]
    warnings: Sequence[str]


def examine(
    dataset: Callable[..., Any],
    splits: Sequence[str] = SPLITS,
    thorough: bool = True,
    watch: Callable | None = None,
) -> Checkup:
    """Find all that is wrong with a data set.

    Args:
        dataset: ``dataset(split=...)`` makes it.
        splits: Those to examine.
        thorough: Also prepare a few of the pairs of files, and look for files that no case names.
        watch: As of :func:`regnet_lab.data.validation.image_stats.gather`.
    """
    faults: list[str] = []
    warnings: list[str] = []
    listings = list_all(dataset, splits, faults)
    cases = list(dict.fromkeys(chain.from_iterable(listing.cases for listing in listings)))
    if thorough and not faults:
        warnings += extra_files(cases)
    known = gather(chain.from_iterable(map(items_of, cases)), watch)
    looks = look_at_cases(cases, known, listings)
    needed = {listing: megabytes(listing, looks) for listing in listings}
    faults += chain.from_iterable(look.faults for look in looks.values())
    for listing in listings:
        faults += [*unequal_landmarks(listing.pairs, looks), *apart(listing, looks)]
    faults += [*repeated_names(listings), *leaks(listings, known)]
    warnings += [*shared_pairs(listings), *twins(listings, known)]
    warnings += [*uncommon_labels(listings, looks), *too_large(needed)]
    items = {
        listing: look_at_items(listing, looks, ITEMS if thorough else 1, faults, warnings)
        for listing in listings
        if thorough or not listing.pairs
    }
    unique = [tuple(dict.fromkeys(sentences)) for sentences in (faults, warnings)]
    return Checkup(listings, looks, items, needed, *unique)


def look_at_cases(
    cases: Sequence[Case], known: Known, listings: Sequence[Listing]
) -> dict[Case, Look]:
    """What each case shows, alone and beside the others of its listing."""
    looks = {case: look_at(case, known) for case in cases}
    for listing in listings:
        for case, sentence in odd_dimensions(listing, looks):
            looks[case] = replace(looks[case], faults=(*looks[case].faults, sentence))
    return looks


def too_large(needed: Mapping[Listing, float]) -> Iterator[str]:
    """Data sets that the memory given to their cache cannot hold."""
    for listing, size in needed.items():
        if size > listing.room:
            yield (
                f"{listing.title}: takes {size:.0f} MB when cached, but the cache keeps "
                f"{listing.room:.0f}; raise prepare.megabytes, or name a folder as prepare.cache."
            )


def look_at_items(
    listing: Listing,
    looks: Mapping[Case, Look],
    count: int,
    faults: list[str],
    warnings: list[str],
) -> list[Pair]:
    """The first, a middle and the last of the items that should be sound, or fewer.

    What is wrong with them is added to the lists.  Landmarks may leave a grid that is cut out of
    an image, but not one that was made with them.
    """
    sound: Sequence[int] = range(len(listing))
    if listing.pairs:
        faulty = {case for case in listing.cases if looks[case].faults}
        sound = [i for i, two in enumerate(listing.pairs) if faulty.isdisjoint(two)]
    places = sorted({0, len(sound) // 2, len(sound) - 1})[:count] if sound else []
    found = []
    for index in (sound[place] for place in places):
        with noted(faults):
            pair = listing.dataset[index]
            where = f"{listing.title}, item {index} ({pair.get('name', 'without a name')})"
            problems = [*item_faults(where, pair)]
            faults += problems
            if not problems:
                (warnings if listing.pairs else faults).extend(lost_points(where, pair))
                found.append(pair)
    return found


def item_faults(where: str, pair: Pair) -> Iterator[str]:
    """What is wrong with an unbatched pair."""
    if missing := [key for key in NEEDED if key not in pair]:
        yield f"{where}: has no '{missing[0]}'."
        return
    _, *spatial = pair["fixed"].shape
    for name, value in pair.items():
        if isinstance(value, Tensor):
            for problem in tensor_problems(name, value, spatial):
                yield f"{where}: '{name}' {problem}."


def tensor_problems(name: str, value: Tensor, spatial: Sequence[int]) -> Iterator[str]:
    """What is wrong with a tensor of a pair."""
    shape, wanted = tuple(value.shape), wanted_shape(name, value, spatial)
    if shape != wanted:
        yield f"has shape {shape} instead of {wanted}"
    if not value.isfinite().all():
        yield "holds NaN or infinite values"
    if name in ("fixed", "moving") and value.min() == value.max():
        yield f"is {value.min():g} everywhere; check the intensity settings"


def wanted_shape(name: str, value: Tensor, spatial: Sequence[int]) -> tuple[int, ...]:
    """The shape that a pair's ``name`` must have on a grid."""
    ndim = len(spatial)
    if name.endswith("_points"):
        return len(value), ndim
    return {"displacement": (ndim, *spatial), "spacing": (ndim,)}.get(name, (1, *spatial))


def lost_points(where: str, pair: Pair) -> Iterator[str]:
    """Landmarks of an item that lie outside its grid."""
    item: dict[str, Any] = dict(pair)
    for side in ("fixed", "moving"):
        points = item.get(f"{side}_points")
        if points is not None and (lost := outside(points.numpy(), item["fixed"].shape[1:]).sum()):
            yield f"{where}: {lost} of {len(points)} {side} landmarks lie outside the grid."
