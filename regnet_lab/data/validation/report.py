"""Print the result of a validation and refuse to train on data with errors."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import median

from nibabel.orientations import aff2axcodes
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import DatasetSplit
from regnet_lab.data.splits import SPLITS
from regnet_lab.data.validation import dataset_checks as across
from regnet_lab.data.validation.case_checks import CaseSummary
from regnet_lab.data.validation.validate import ValidationReport, validate_dataset
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

QUANTILE_NAMES = ("minimum", "0.5 %", "99.5 %", "maximum")

log = logging.getLogger(__name__)


def format_ranges(rows: Iterable[Sequence[float]]) -> str:
    """Format the range of each column, e.g. ``31-43 x 40-59``; one group per row length."""
    groups = across.group_values((len(row), tuple(row)) for row in rows).values()
    return ", ".join(
        " x ".join(format_range(column) for column in zip(*group, strict=True)) for group in groups
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
    quantiles = {name: format_range(x) for name, x in zip(QUANTILE_NAMES, ranges, strict=False)}
    codes = Counter("".join(aff2axcodes(v.affine)[: v.array.ndim]) for v in volumes)
    return {
        "shape": format_ranges(volume.array.shape for volume in volumes),
        "spacing (mm)": format_ranges(volume.spacing.tolist() for volume in volumes),
        "orientation": ", ".join(f"{code} ({count})" for code, count in codes.most_common()),
        **quantiles,
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


def summarize_split(report: ValidationReport, subset: DatasetSplit) -> dict[str, str]:
    """Describe one data set of a split: a value for each row of the table."""
    column = {"pairs": str(len(subset))}
    if subset.cases:
        summaries = [report.summaries[case] for case in subset.cases]
        counts = [s.num_points for s in summaries if s.num_points is not None]
        column["cases"] = str(len(summaries))
        column |= summarize_cases(summaries)
        column["label maps"] = str(sum(case.labels is not None for case in subset.cases))
        column["masks"] = str(sum(case.mask is not None for case in subset.cases))
        column["landmarks"] = f"{format_range(counts)} in {len(counts)} cases" if counts else "0"
        column["cases with errors"] = str(sum(bool(summary.errors) for summary in summaries))
        column["cached (MB)"] = f"{report.cache_megabytes[subset]:.0f}"
    if samples := report.samples.get(subset):
        column |= summarize_samples(samples)
    return column


def summarize_labels(report: ValidationReport, subset: DatasetSplit) -> dict[str, str]:
    """Return, for each label, the number of label maps with it and its median voxel count."""
    maps = across.collect_label_counts([subset], report.summaries).values()
    return {
        str(label): f"{len(sizes)} of {len(maps)}, {median(sizes):.0f}"
        for label in sorted(set().union(*maps))
        if (sizes := [counts[label] for counts in maps if label in counts])
    }


def print_table(console: Console, title: str, columns: Mapping[str, Mapping[str, str]]) -> None:
    """Print a table with a column per data set and a row per property, if there are any."""
    table = Table("", *columns, title=title)
    for row in dict.fromkeys(chain.from_iterable(columns.values())):
        table.add_row(row, *(column.get(row, "") for column in columns.values()))
    if table.rows:
        console.print(table)


def write_lines(console: Console, *lines: str) -> None:
    """Print unbroken lines without markup."""
    console.print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)


def print_report(report: ValidationReport) -> None:
    """Print tables, errors and warnings."""
    console = Console()
    subsets = report.dataset_splits
    print_table(console, "data", {s.title: summarize_split(report, s) for s in subsets})
    columns = {s.title: summarize_labels(report, s) for s in subsets}
    print_table(console, "labels: number of maps, median voxels", columns)
    lines = [f"error: {error}" for error in report.errors]
    lines += [f"warning: {warning}" for warning in report.warnings]
    if not report.errors:
        lines.append(f"No errors, {len(report.warnings)} warnings.")
    write_lines(console, *lines)


@rank_zero_only
def validate_data(data: PairDataModule, full: bool) -> None:
    """Validate the data of a run and raise a UserError if they have errors.

    If ``full``, all splits are checked thoroughly and the whole report is printed; otherwise only
    the training and validation cases are checked and only errors printed.
    """
    report = validate_dataset(data.dataset, SPLITS if full else ("train", "val"), full)
    errors, count = report.errors, len(report.warnings)
    if full:
        print_report(report)
    elif len(errors) > 1:
        write_lines(Console(stderr=True), *errors)
    if errors:
        listed = f"the data have {len(errors)} errors, each listed above, such as "
        examples = " ".join(errors[: across.MAX_EXAMPLES])
        raise UserError(listed + examples if len(errors) > 1 else examples)
    if not full:
        pairs, cases = sum(map(len, report.dataset_splits)), len(report.summaries)
        size = sum(report.cache_megabytes.values())
        hint = f"; {count} warnings, see validate_data=true" if count else ""
        log.info("data: %d pairs of %d cases, %.0f MB when cached%s", pairs, cases, size, hint)
