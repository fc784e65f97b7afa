"""Validate a data set and report all its problems at once, before a long training starts.

Data sets that list their files, as :class:`regnet_lab.data.case.CasePairs` does, are checked file
by file; of any other data set a few items are loaded. The parts of a mixture are checked one by
one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import DatasetSplit, collect_errors, list_dataset_splits
from regnet_lab.data.io.landmarks import find_points_outside
from regnet_lab.data.validation import dataset_checks as across
from regnet_lab.data.validation.case_checks import (
    CaseSummary,
    check_case,
    find_dimension_mismatches,
    find_disjoint_images,
    find_landmark_mismatches,
    list_case_files,
)
from regnet_lab.data.validation.image_stats import (
    ProgressWrapper,
    StatsByFile,
    collect_image_stats,
)
from regnet_lab.types import Pair

SPLITS = ("train", "val", "test")
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
    dataset: Callable[..., Any],
    splits: Sequence[str] = SPLITS,
    thorough: bool = True,
    show_progress: ProgressWrapper | None = None,
) -> ValidationReport:
    """Find all problems of a data set.

    Args:
        dataset: ``dataset(split=...)`` makes it.
        splits: Splits to check.
        thorough: Also load a few pairs, and look for files that no case uses.
        show_progress: See :func:`regnet_lab.data.validation.image_stats.collect_image_stats`.
    """
    errors: list[str] = []
    warnings: list[str] = []
    dataset_splits = list_dataset_splits(dataset, splits, errors)
    cases = list(
        dict.fromkeys(chain.from_iterable(dataset_split.cases for dataset_split in dataset_splits))
    )
    if thorough and not errors:
        warnings += across.find_unlisted_files(cases)
    stats = collect_image_stats(chain.from_iterable(map(list_case_files, cases)), show_progress)
    summaries = check_cases(cases, stats, dataset_splits)
    megabytes = {x: across.estimate_cache_megabytes(x, summaries) for x in dataset_splits}
    errors += chain.from_iterable(summary.errors for summary in summaries.values())
    for dataset_split in dataset_splits:
        errors += find_landmark_mismatches(dataset_split.case_pairs, summaries)
        errors += find_disjoint_images(dataset_split, summaries)
    errors += [
        *across.find_duplicate_names(dataset_splits),
        *across.find_leaks(dataset_splits, stats),
    ]
    warnings += across.find_reused_training_pairs(dataset_splits)
    warnings += across.find_duplicate_images(dataset_splits, stats)
    warnings += across.find_inconsistent_labels(dataset_splits, summaries)
    warnings += find_cache_overflows(megabytes)
    samples = {
        dataset_split: check_samples(
            dataset_split, summaries, SAMPLES_PER_SPLIT if thorough else 1, errors, warnings
        )
        for dataset_split in dataset_splits
        if thorough or not dataset_split.case_pairs
    }
    unique = [tuple(dict.fromkeys(sentences)) for sentences in (errors, warnings)]
    return ValidationReport(dataset_splits, summaries, samples, megabytes, *unique)


def check_cases(
    cases: Sequence[Case], stats_by_file: StatsByFile, dataset_splits: Sequence[DatasetSplit]
) -> dict[Case, CaseSummary]:
    """Check each case on its own and against the dimension of its data set."""
    summaries = {case: check_case(case, stats_by_file) for case in cases}
    for dataset_split in dataset_splits:
        for case, error in find_dimension_mismatches(dataset_split, summaries):
            errors = (*summaries[case].errors, error)
            summaries[case] = replace(summaries[case], errors=errors)
    return summaries


def find_cache_overflows(megabytes: Mapping[DatasetSplit, float]) -> Iterator[str]:
    """Find data sets that do not fit into their memory cache."""
    for dataset_split, size in megabytes.items():
        if size > dataset_split.cache_megabytes:
            yield (
                f"{dataset_split.title}: takes {size:.0f} MB when cached, but the cache is limited "
                f"to {dataset_split.cache_megabytes:.0f} MB; raise prepare.megabytes or set "
                "prepare.cache to a folder."
            )


def check_samples(
    dataset_split: DatasetSplit,
    summaries: Mapping[Case, CaseSummary],
    count: int,
    errors: list[str],
    warnings: list[str],
) -> list[Pair]:
    """Load the first, middle and last item without case errors and return the valid ones.

    Problems are appended to ``errors`` and ``warnings``. Landmarks outside the grid are errors
    only for generated pairs: preprocessing may crop those of files.
    """
    indices: Sequence[int] = range(len(dataset_split))
    if dataset_split.case_pairs:
        faulty = {case for case in dataset_split.cases if summaries[case].errors}
        indices = [i for i, pair in enumerate(dataset_split.case_pairs) if faulty.isdisjoint(pair)]
    positions = sorted({0, len(indices) // 2, len(indices) - 1})[:count] if indices else []
    samples = []
    for index in (indices[position] for position in positions):
        with collect_errors(errors):
            pair = dataset_split.dataset[index]
            where = f"{dataset_split.title}, item {index} ({pair.get('name', 'without a name')})"
            problems = [*find_pair_errors(where, pair)]
            errors += problems
            if not problems:
                (warnings if dataset_split.case_pairs else errors).extend(
                    find_outside_points(where, pair)
                )
                samples.append(pair)
    return samples


def find_pair_errors(where: str, pair: Pair) -> Iterator[str]:
    """Find missing entries and invalid tensors of an unbatched pair."""
    if missing := [key for key in REQUIRED_KEYS if key not in pair]:
        yield f"{where}: has no '{missing[0]}'."
        return
    _, *spatial = pair["fixed"].shape
    for name, value in pair.items():
        if isinstance(value, Tensor):
            for problem in find_tensor_problems(name, value, spatial):
                yield f"{where}: '{name}' {problem}."


def find_tensor_problems(name: str, value: Tensor, spatial: Sequence[int]) -> Iterator[str]:
    """Find a wrong shape, non-finite values or a constant image in an entry of a pair."""
    ndim = len(spatial)
    shapes = {"displacement": (ndim, *spatial), "spacing": (ndim,)}
    expected = shapes.get(name, (1, *spatial))
    if name.endswith("_points"):
        expected = (len(value), ndim)
    if tuple(value.shape) != expected:
        yield f"has shape {tuple(value.shape)} instead of {expected}"
    if not value.isfinite().all():
        yield "contains NaN or infinite values"
    if name in ("fixed", "moving") and value.min() == value.max():
        yield f"is {value.min():g} everywhere; check the intensity settings"


def find_outside_points(where: str, pair: Pair) -> Iterator[str]:
    """Find landmarks of a pair that lie outside its grid."""
    entries: dict[str, Any] = dict(pair)
    for side in ("fixed", "moving"):
        points = entries.get(f"{side}_points")
        if points is not None and (
            n := find_points_outside(points.numpy(), pair["fixed"].shape[1:]).sum()
        ):
            yield f"{where}: {n} of {len(points)} {side} landmarks lie outside the grid."
