"""Validate a data set and report all its problems at once, before a long training starts.

Data sets that list their files, as :class:`regnet_lab.data.datasets.base.CasePairs` does, are
checked file by file; of any other data set a few items are loaded. The parts of a mixture are
checked one by one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import DatasetSplit, collect_errors, list_dataset_splits
from regnet_lab.data.io.landmarks import check_landmark_counts, find_points_outside
from regnet_lab.data.splits import SPLITS
from regnet_lab.data.validation import dataset_checks as across
from regnet_lab.data.validation.case_checks import (
    CaseSummary,
    check_cases,
    find_disjoint_images,
    list_case_files,
)
from regnet_lab.data.validation.image_stats import collect_image_stats
from regnet_lab.types import Pair

SAMPLES_PER_SPLIT = 3
REQUIRED_KEYS = ("fixed", "moving", "spacing", "name")


@dataclass(frozen=True)
class ValidationReport:
    """Result of a validation.

    Args:
        dataset_splits: The data sets, by split and part.
        summaries: Summary of each case.
        samples: Items of each data set that were loaded.
        cache_megabytes: Memory that the pairs of each data set take in a cache.
        errors: Sentences; training is refused if there are any.
        warnings: Sentences; training is allowed.
    """

    dataset_splits: Sequence[DatasetSplit]
    summaries: Mapping[Case, CaseSummary]
    samples: Mapping[DatasetSplit, Sequence[Pair]]
    cache_megabytes: Mapping[DatasetSplit, float]
    errors: Sequence[str]
    warnings: Sequence[str]


def validate_dataset(
    dataset: Callable[..., Any], splits: Sequence[str] = SPLITS, thorough: bool = True
) -> ValidationReport:
    """Find all problems of the data set that ``dataset(split=...)`` makes.

    If ``thorough``, also load a few pairs and look for files that no case uses.
    """
    errors: list[str] = []
    warnings: list[str] = []
    subsets = list_dataset_splits(dataset, splits, errors)
    cases = list(dict.fromkeys(chain.from_iterable(subset.cases for subset in subsets)))
    if thorough and not errors:
        warnings += across.find_unlisted_files(cases)
    stats = collect_image_stats(chain.from_iterable(map(list_case_files, cases)))
    summaries = check_cases(cases, stats, subsets)
    megabytes = {subset: across.estimate_cache_megabytes(subset, summaries) for subset in subsets}
    errors += chain.from_iterable(summary.errors for summary in summaries.values())
    for subset in subsets:
        for pair in subset.case_pairs:
            with collect_errors(errors):
                check_landmark_counts(pair, [summaries[case].num_points for case in pair])
        errors += find_disjoint_images(subset, summaries)
    errors += across.find_duplicate_names(subsets)
    errors += across.find_leaks(subsets, stats)
    warnings += across.find_reused_training_pairs(subsets)
    warnings += across.find_duplicate_images(subsets, stats)
    warnings += across.find_inconsistent_labels(subsets, summaries)
    warnings += find_cache_overflows(megabytes)
    count = SAMPLES_PER_SPLIT if thorough else 1
    samples = {
        subset: check_samples(subset, summaries, count, errors, warnings)
        for subset in subsets
        if thorough or not subset.case_pairs
    }
    unique = [tuple(dict.fromkeys(sentences)) for sentences in (errors, warnings)]
    return ValidationReport(subsets, summaries, samples, megabytes, *unique)


def find_cache_overflows(megabytes: Mapping[DatasetSplit, float]) -> Iterator[str]:
    """Find data sets that do not fit into their memory cache."""
    for subset, size in megabytes.items():
        if size > subset.cache_megabytes:
            yield (
                f"{subset.title}: takes {size:.0f} MB when cached, but the cache is limited "
                f"to {subset.cache_megabytes:.0f} MB; raise prepare.megabytes or set "
                "prepare.cache to a folder."
            )


def check_samples(
    subset: DatasetSplit,
    summaries: Mapping[Case, CaseSummary],
    count: int,
    errors: list[str],
    warnings: list[str],
) -> list[Pair]:
    """Load the first, middle and last item without case errors and return the valid ones.

    Problems are appended to ``errors`` and ``warnings``. Landmarks outside the grid are errors
    only for generated pairs: preprocessing may crop those of files.
    """
    indices: Sequence[int] = range(len(subset))
    if subset.case_pairs:
        faulty = {case for case in subset.cases if summaries[case].errors}
        indices = [i for i, pair in enumerate(subset.case_pairs) if faulty.isdisjoint(pair)]
    positions = sorted({0, len(indices) // 2, len(indices) - 1})[:count] if indices else []
    samples = []
    for index in (indices[position] for position in positions):
        with collect_errors(errors):
            pair = subset.dataset[index]
            where = f"{subset.title}, item {index} ({pair.get('name', 'without a name')})"
            problems = [*find_pair_errors(where, pair)]
            errors += problems
            if not problems:
                outside = find_outside_points(where, pair)
                (warnings if subset.case_pairs else errors).extend(outside)
                samples.append(pair)
    return samples


def find_pair_errors(where: str, pair: Pair) -> Iterator[str]:
    """Find missing entries, wrong shapes, non-finite values and constant images in a pair."""
    if missing := [key for key in REQUIRED_KEYS if key not in pair]:
        yield f"{where}: has no '{missing[0]}'."
        return
    _, *spatial = pair["fixed"].shape
    ndim = len(spatial)
    shapes = {"displacement": (ndim, *spatial), "spacing": (ndim,)}
    tensors = {name: value for name, value in pair.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        grid = (len(value), ndim) if name.endswith("_points") else (1, *spatial)
        expected = shapes.get(name, grid)
        if value.shape != expected:
            yield f"{where}: '{name}' has shape {tuple(value.shape)} instead of {expected}."
        if not value.isfinite().all():
            yield f"{where}: '{name}' contains NaN or infinite values."
        if name in ("fixed", "moving") and value.min() == value.max():
            constant = f"is {value.min():g} everywhere; check the intensity settings"
            yield f"{where}: '{name}' {constant}."


def find_outside_points(where: str, pair: Pair) -> Iterator[str]:
    """Find landmarks of a pair that lie outside its grid."""
    entries: dict[str, Any] = dict(pair)
    for side in ("fixed", "moving"):
        points = entries.get(f"{side}_points")
        if points is not None:
            count = find_points_outside(points.numpy(), pair["fixed"].shape[1:]).sum()
            if count:
                yield f"{where}: {count} of {len(points)} {side} landmarks lie outside the grid."
