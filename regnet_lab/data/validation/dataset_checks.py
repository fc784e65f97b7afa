"""Checks across the cases of a data set: names, data leakage, labels, files and cache size."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import DatasetSplit
from regnet_lab.data.io.labels import narrow_labels
from regnet_lab.data.preprocessing.functional import list_group_labels
from regnet_lab.data.preprocessing.grids import PairPreprocessor, compute_spacing_ratio
from regnet_lab.data.validation.case_checks import CaseSummary, list_case_files
from regnet_lab.data.validation.image_stats import ImageStats, StatsByFile

MAX_EXAMPLES = 3  # named in a sentence

Subsets = Sequence[DatasetSplit]
Summaries = Mapping[Case, CaseSummary]


def format_examples(items: Collection[Any]) -> str:
    """Return the first few items and the number of the others."""
    more = len(items) - MAX_EXAMPLES
    examples = ", ".join(map(str, list(items)[:MAX_EXAMPLES]))
    return f"{examples} and {more} more" if more > 0 else examples


def group_values(items: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    """Return the different values that occur with each key.

    >>> group_values([("a", 1), ("b", 2), ("a", 3), ("a", 1)])
    {'a': [1, 3], 'b': [2]}
    """
    groups: dict[Any, list[Any]] = {}
    for key, value in dict.fromkeys(items):
        groups.setdefault(key, []).append(value)
    return groups


def find_duplicate_names(subsets: Subsets) -> Iterator[str]:
    """Find case names that stand for more than one image."""
    images = group_values(((s.part, case.name), case.image) for s in subsets for case in s.cases)
    for (_, name), paths in images.items():
        if len(paths) > 1:
            yield f"{format_examples(paths)}: are all named '{name}'; give each case its own name."


def has_training_pairs(subset: DatasetSplit, subsets: Subsets) -> bool:
    """Return whether the pairs of a split are exactly those of a training split."""
    training = [other.case_pairs for other in subsets if other.split == "train"]
    return bool(subset.case_pairs) and subset.case_pairs in training


def find_reused_training_pairs(subsets: Subsets) -> Iterator[str]:
    """Find validation and test splits that consist of exactly the training pairs."""
    for subset in subsets:
        if subset.split != "train" and has_training_pairs(subset, subsets):
            yield f"{subset.title}: consists of exactly the pairs used for training."


def find_atlases(subsets: Subsets) -> set[Path]:
    """Return images that are the fixed image of all pairs of a split."""
    fixed_images = [{fixed.image for fixed, _ in subset.case_pairs} for subset in subsets]
    return {path for paths in fixed_images if len(paths) == 1 for path in paths}


def get_digest(stats_by_file: StatsByFile, path: Path) -> str:
    """Return the digest of an image's voxels, or its path if it could not be read."""
    stats = stats_by_file["image", path]
    return stats.digest if isinstance(stats, ImageStats) else str(path)


def find_leaks(subsets: Subsets, stats_by_file: StatsByFile) -> Iterator[str]:
    """Find images used both for training and evaluation, by path or content, except an atlas."""
    training = [subset for subset in subsets if subset.split == "train"]
    evaluation = [
        subset
        for subset in subsets
        if subset.split != "train" and not has_training_pairs(subset, subsets)
    ]
    atlases = find_atlases(training) & find_atlases(evaluation)
    train_paths = {path for subset in training for path in subset.images} - atlases
    train_digests = {get_digest(stats_by_file, path): path for path in train_paths}
    titles = group_values((path, s.title) for s in evaluation for path in s.images)
    for path, names in titles.items():
        duplicate = train_digests.get(get_digest(stats_by_file, path))
        if duplicate and path not in atlases:
            same = "is" if path in train_paths else f"has the same voxels as {duplicate}, which is"
            yield (
                f"{path}: {same} used for training and also in {' and '.join(names)}; "
                "remove it from one of them."
            )


def find_duplicate_images(subsets: Subsets, stats_by_file: StatsByFile) -> Iterator[str]:
    """Find images of one split that have the same voxels."""
    images = group_values(
        ((s.split, get_digest(stats_by_file, path)), path) for s in subsets for path in s.images
    )
    for paths in images.values():
        if len(paths) > 1:
            yield f"{format_examples(paths)}: have the same voxels."


def collect_label_counts(subsets: Subsets, summaries: Summaries) -> dict[Path, dict[int, int]]:
    """Return the number of voxels of each label in the label maps of splits."""
    cases = chain.from_iterable(subset.cases for subset in subsets)
    labels = [(case.labels, summaries[case].labels) for case in cases]
    return {path: stats.counts for path, stats in labels if path and stats}


def select_labels(labels: set[int], subset: DatasetSplit) -> list[int]:
    """Return the labels that the preprocessing keeps, including those of label groups."""
    selection = subset.preprocessor.labels if subset.preprocessor else None
    if selection is not None:
        groups = selection.values() if isinstance(selection, Mapping) else selection
        labels = labels & set(chain.from_iterable(map(list_group_labels, groups)))
    return sorted(labels)


def find_inconsistent_labels(subsets: Subsets, summaries: Summaries) -> Iterator[str]:
    """Find selected labels that only some of the label maps of a data set contain."""
    for part in dict.fromkeys(subset.part for subset in subsets):
        in_part = [subset for subset in subsets if subset.part == part]
        maps = collect_label_counts(in_part, summaries)
        for label in select_labels(set().union(*maps.values()) - {0}, in_part[0]):
            present = [path for path, counts in maps.items() if label in counts]
            missing = [path for path, counts in maps.items() if label not in counts]
            fewer = len(present) < len(missing)
            few, where = (present, "only in") if fewer else (missing, "missing from")
            if few:
                share = f"{len(few)} of {len(maps)} label maps"
                yield f"label {label} is {where} {share}: {format_examples(few)}."


def find_unlisted_files(cases: Sequence[Case]) -> Iterator[str]:
    """Find files in the directories of the cases, of the same type, that belong to no case."""
    listed = {path.absolute() for case in cases for _, path in list_case_files(case)}
    types = {(path.parent, path.suffix) for path in listed if path.is_file()}
    unlisted = {path for parent, end in types for path in parent.glob(f"*{end}")} - listed
    if unlisted:
        yield f"{format_examples(sorted(unlisted))}: belong to no case of the data set."


def estimate_cache_megabytes(subset: DatasetSplit, summaries: Summaries) -> float:
    """Estimate the memory that the preprocessed pairs without errors take in a cache.

    Decoded files that several entries share are included.
    """
    preprocessor = subset.preprocessor
    in_world = getattr(preprocessor, "needs_fixed", False)
    depends_on_fixed = in_world or getattr(preprocessor, "shared_range", False)
    pairs = [p for p in subset.case_pairs if not any(summaries[case].errors for case in p)]
    entries = {(case, p[0] if depends_on_fixed else case) for p in pairs for case in p}
    decoded: dict[Path, int] = {}
    size = 0.0
    for case, fixed in entries:
        labels = summaries[case].labels
        label_bytes = narrow_labels(np.array([*labels.counts])).itemsize if labels else 0
        voxel_bytes = 4 + label_bytes + 4 * bool(case.mask)  # image and mask are float32
        size += voxel_bytes * count_grid_voxels(summaries[fixed], preprocessor)
        image = summaries[case].image
        if image and (in_world or (case.phase, case.slice) != (None, None)):
            decoded[case.image] = image.nbytes
    return (size + sum(decoded.values())) / 1e6


def count_grid_voxels(summary: CaseSummary, preprocessor: PairPreprocessor | None) -> float:
    """Return the number of voxels of a case, or of a case moved to it, after preprocessing."""
    volume = summary.volume
    if volume is None:
        return 0.0
    image_shape = volume.array.shape
    if preprocessor and preprocessor.shape:
        return math.prod((*preprocessor.shape, *image_shape[len(preprocessor.shape) :]))
    spacing = preprocessor.spacing if preprocessor else None
    return math.prod(image_shape / compute_spacing_ratio(spacing, volume.spacing))
