"""Print the result of a validation and refuse to train on data with errors."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from statistics import median

from nibabel.orientations import aff2axcodes
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from rich.table import Table

from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import DatasetSplit
from regnet_lab.data.validation.case_checks import CaseSummary
from regnet_lab.data.validation.dataset_checks import MAX_EXAMPLES, collect_label_counts
from regnet_lab.data.validation.validate import SPLITS, ValidationReport, validate_dataset
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

QUANTILE_NAMES = ("minimum", "0.5 %", "99.5 %", "maximum")

log = logging.getLogger(__name__)


def format_ranges(rows: Iterable[Sequence[float]]) -> str:
    """Format the range of each column, e.g. ``31-43 x 40-59``; one group per row length."""
    by_length: dict[int, list[Sequence[float]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    return ", ".join(
        " x ".join(format_range(column) for column in zip(*group, strict=True))
        for group in by_length.values()
    )


def format_range(numbers: Sequence[float]) -> str:
    """Format the smallest and largest number, or the only one."""
    low, high = f"{min(numbers):.5g}", f"{max(numbers):.5g}"
    return low if low == high else f"{low} to {high}" if "-" in low + high else f"{low}-{high}"


def summarize_cases(summaries: Sequence[CaseSummary]) -> dict[str, str]:
    """Describe shape, spacing, orientation and intensities of cases."""
    volumes = [summary.volume for summary in summaries if summary.volume]
    images = {summary.image.digest: summary.image for summary in summaries if summary.image}
    ranges = zip(*(stats.quantiles for stats in images.values()), strict=True)
    codes = Counter("".join(aff2axcodes(v.affine)[: v.array.ndim]) for v in volumes)
    return {
        "shape": format_ranges(volume.array.shape for volume in volumes),
        "spacing (mm)": format_ranges(volume.spacing.tolist() for volume in volumes),
        "orientation": ", ".join(f"{code} ({count})" for code, count in codes.most_common()),
        **{
            name: format_range(values) for name, values in zip(QUANTILE_NAMES, ranges, strict=False)
        },
    }


def summarize_samples(samples: Sequence[Pair]) -> dict[str, str]:
    """Describe the preprocessed pairs that were loaded."""
    images = [image for pair in samples for image in (pair["fixed"], pair["moving"])]
    limits = [float(limit) for image in images for limit in (image.min(), image.max())]
    return {
        "samples": str(len(samples)),
        "prepared shape": format_ranges([*image.shape[1:]] for image in images),
        "prepared spacing (mm)": format_ranges(pair["spacing"].tolist() for pair in samples),
        "prepared range": format_range(limits),
        "keys": ", ".join(dict.fromkeys(key for pair in samples for key in pair)),
    }


def summarize_split(report: ValidationReport, dataset_split: DatasetSplit) -> dict[str, str]:
    """Describe one data set of a split: a value for each row of the table."""
    column = {"pairs": str(len(dataset_split))}
    if dataset_split.cases:
        summaries = [report.summaries[case] for case in dataset_split.cases]
        counts = [s.num_points for s in summaries if s.num_points is not None]
        column["cases"] = str(len(summaries))
        column |= summarize_cases(summaries)
        column["label maps"] = str(sum(case.labels is not None for case in dataset_split.cases))
        column["masks"] = str(sum(case.mask is not None for case in dataset_split.cases))
        column["landmarks"] = f"{format_range(counts)} in {len(counts)} cases" if counts else "0"
        column["cases with errors"] = str(sum(bool(summary.errors) for summary in summaries))
        column["cached (MB)"] = f"{report.cache_megabytes[dataset_split]:.0f}"
    if samples := report.samples.get(dataset_split):
        column |= summarize_samples(samples)
    return column


def summarize_labels(report: ValidationReport, dataset_split: DatasetSplit) -> dict[str, str]:
    """Return, for each label, the number of label maps with it and its median voxel count."""
    maps = collect_label_counts([dataset_split], report.summaries).values()
    return {
        str(label): f"{len(sizes)} of {len(maps)}, {median(sizes):.0f}"
        for label in sorted(set().union(*maps))
        if (sizes := [counts[label] for counts in maps if label in counts])
    }


def build_table(title: str, report: ValidationReport, summarize: Callable) -> Table | None:
    """Build a table with a column per data set and a row per property; None without rows."""
    columns = {
        dataset_split.title: summarize(report, dataset_split)
        for dataset_split in report.dataset_splits
    }
    rows = list(dict.fromkeys(chain.from_iterable(columns.values())))
    if not rows:
        return None
    table = Table("", *columns, title=title)
    for row in rows:
        table.add_row(row, *(column.get(row, "") for column in columns.values()))
    return table


def show_progress(results: Iterable, total: int) -> Iterable:
    """Show a progress bar while files are read, on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return results
    return track(results, "reading files", total, console=console, transient=True)


def print_report(report: ValidationReport) -> None:
    """Print tables, errors and warnings."""
    console = Console()
    write = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for title, summarize in (
        ("data", summarize_split),
        ("labels: number of maps, median voxels", summarize_labels),
    ):
        if table := build_table(title, report, summarize):
            console.print(table)
    for kind, sentences in (("error", report.errors), ("warning", report.warnings)):
        for sentence in sentences:
            write(f"{kind}: {sentence}")
    if not report.errors:
        write(f"No errors, {len(report.warnings)} warnings.")


@rank_zero_only
def validate_data(data: PairDataModule, full: bool) -> None:
    """Validate the data of a run.

    Args:
        data: Data module to validate.
        full: Check all splits thoroughly and print the whole report; otherwise check only the
            training and validation cases, and print only errors.

    Raises:
        UserError: The data have errors.
    """
    splits = SPLITS if full else ("train", "val")
    report = validate_dataset(data.dataset, splits, full, show_progress)
    if full:
        print_report(report)
    raise_errors(report.errors, printed=full)
    if not full:
        pairs, cases = sum(map(len, report.dataset_splits)), len(report.summaries)
        size = sum(report.cache_megabytes.values())
        count = len(report.warnings)
        hint = f"; {count} warnings, see validate_data=true" if count else ""
        log.info("data: %d pairs of %d cases, %.0f MB when cached%s", pairs, cases, size, hint)


def raise_errors(errors: Sequence[str], printed: bool) -> None:
    """Raise a UserError if there are errors; print them first unless ``printed``."""
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors and not printed:
        console = Console(stderr=True)
        console.print(*errors, sep="\n", markup=False, highlight=False, soft_wrap=True)
    if errors:
        raise UserError(
            f"the data have {len(errors)} errors, each listed above, such as "
            + " ".join(errors[:MAX_EXAMPLES])
        )
