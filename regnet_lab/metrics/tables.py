"""Per-case, per-label and summary tables from one record for each case and method.

A record is a flat dict: ``case``, ``method``, then metric values.  A metric's name ends in its unit
(``hd95_mm``); a suffix after a slash is a label (``dice/1``).  NaN means "not defined for this
case" and is excluded from means; standard deviations use ddof 0, as Learn2Reg does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import write_text

Record = Mapping[str, Any]
TextTable = Sequence[Sequence[str]]  # rows of text, the header first

IDENTITY = "identity"
LABEL_KEYS = ["case", "method", "label"]
COST_COLUMNS = ("seconds", "peak_mb")  # listed after the metrics
METRIC_FORMATS = {  # metric without its unit: displayed name, decimals
    "dice": ("Dice", 3),
    "dice30": ("Dice30", 3),
    "hd95": ("HD95", 2),
    "asd": ("ASD", 2),
    "tre": ("TRE", 2),
    "tre30": ("TRE30", 2),
    "epe": ("EPE", 2),
    "rmse": ("RMSE", 4),
    "sdlogj": ("SDlogJ", 3),
    "sdlogj_plain": ("SDlogJ without offset", 3),
    "folds": ("folds", 3),
    "ndv": ("NDV", 3),
    "rank": ("rank", 2),
    "seconds": ("seconds", 2),
    "peak": ("peak memory", 0),
}
UNITS = {"mm": "mm", "vox": "voxels", "percent": "%", "mb": "MB"}


def _drop_duplicates(records: Sequence[Record]) -> list[Record]:
    """Return the first record of each (method, case): DDP repeats cases to fill its last batch."""
    if not records:
        raise UserError("There is nothing to report: no case was evaluated; check the data split.")
    unique: dict[tuple[str, str], Record] = {}
    for record in records:
        unique.setdefault((record["method"], record["case"]), record)
    return list(unique.values())


def build_case_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each method and case, without the values of single labels."""
    rows = [{k: v for k, v in r.items() if "/" not in k} for r in _drop_duplicates(records)]
    frame = pd.DataFrame(rows)
    metrics = [name for name in frame if name not in ("case", "method")]
    return frame[["case", "method", *sorted(metrics, key=COST_COLUMNS.__contains__)]]


def build_label_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each case, method and label, one column for each per-label metric."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for record in _drop_duplicates(records):
        for key, value in record.items():
            metric, slash, label = key.rpartition("/")
            if slash:
                index = (record["case"], record["method"], int(label))
                row = rows.setdefault(index, dict(zip(LABEL_KEYS, index, strict=True)))
                row[metric] = value
    return pd.DataFrame(rows.values(), columns=None if rows else LABEL_KEYS)


def summarize(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each method, identity first: ``cases``, ``<metric>_mean``, ``_std``.

    >>> records = [{"case": c, "method": "net", "dice": d} for c, d in (("a", 0.8), ("b", 0.6))]
    >>> summarize(records).loc["net"].round(3).to_dict()
    {'cases': 2.0, 'dice_mean': 0.7, 'dice_std': 0.1}
    """
    frame = build_case_table(records)
    groups = frame.groupby("method", sort=False)
    table = groups.size().to_frame("cases")
    for metric in frame.select_dtypes("number"):
        table[f"{metric}_mean"] = groups[metric].mean()
        table[f"{metric}_std"] = groups[metric].std(ddof=0)
    return table.loc[sorted(table.index, key=lambda method: method != IDENTITY)]


def list_metrics(table: pd.DataFrame) -> list[str]:
    """Return the metrics of a summary or a leaderboard, in the order of its columns."""
    return [str(name).removesuffix("_mean") for name in table if str(name).endswith("_mean")]


def split_unit(metric: str) -> tuple[str, str]:
    """Split a metric's name and unit; the unit is empty if the name does not end in one.

    >>> split_unit("hd95_mm"), split_unit("dice")
    (('hd95', 'mm'), ('dice', ''))
    """
    name, _, unit = metric.rpartition("_")
    return (name, UNITS[unit]) if unit in UNITS else (metric, "")


def find_format(name: str) -> tuple[str, int] | None:
    """Return the displayed name and the decimals of a metric without its unit, if it has any."""
    if name.startswith("mae_"):
        return name.replace("mae_", "MAE ").replace("_", " "), 2
    return METRIC_FORMATS.get(name)


def format_header(metric: str) -> str:
    """Return a metric's displayed name with its unit; an unknown metric stays as it is.

    >>> format_header("hd95_mm")
    'HD95 (mm)'
    """
    name, unit = split_unit(metric)
    if (column_format := find_format(name)) is None:
        return metric
    return f"{column_format[0]} ({unit})" if unit else column_format[0]


def format_number(metric: str, value: float | None) -> str:
    """Format a value with the decimals of its metric; a dash for NaN or None."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    column_format = find_format(split_unit(metric)[0])
    return f"{value:.{column_format[1]}f}" if column_format else f"{value:.4g}"


def format_mean_std(metric: str, mean: float, std: float) -> str:
    """Format ``mean ± std`` with the decimals of the metric; a dash if the mean is NaN."""
    if math.isnan(mean):
        return "-"
    return f"{format_number(metric, mean)} ± {format_number(metric, std)}"


def format_summary(table: pd.DataFrame) -> list[list[str]]:
    """Format a summary as rows of text, header first."""
    metrics = list_metrics(table)
    rows = [
        [str(method), str(row["cases"].astype(int))]
        + [format_mean_std(m, row[f"{m}_mean"], row[f"{m}_std"]) for m in metrics]
        for method, row in table.iterrows()
    ]
    return [["method", "cases", *map(format_header, metrics)], *rows]


def to_markdown(rows: TextTable) -> str:
    """Format rows of text as a Markdown table with aligned columns, the first to the left."""
    cells = [[text.replace("|", r"\|") for text in row] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    lines = [
        [row[0].ljust(first), *map(str.rjust, row[1:], others)]
        for row in (cells[0], rule, *cells[1:])
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(rows: TextTable) -> str:
    """Format rows of text as a LaTeX tabular (package booktabs)."""
    columns = "l" + "r" * (len(rows[0]) - 1)
    text = _to_frame(rows).to_latex(index=False, escape=True, column_format=columns)
    return text.replace("±", r"$\pm$").replace("<", "$<$")


def to_html(rows: TextTable) -> str:
    """Format rows of text as an HTML table."""
    return _to_frame(rows).to_html(index=False, border=0)


def _to_frame(rows: TextTable) -> pd.DataFrame:
    return pd.DataFrame(rows[1:], columns=list(rows[0]))


def summary_to_markdown(table: pd.DataFrame) -> str:
    """Format a summary as a Markdown table."""
    return to_markdown(format_summary(table))


def summary_to_rich(table: pd.DataFrame) -> Table:
    """Format a summary for the terminal, transposed so that it fits narrow ones."""
    methods, *rows = zip(*format_summary(table), strict=True)
    rich = Table(title="mean ± standard deviation over cases")
    for column, name in enumerate(["", *methods[1:]]):
        rich.add_column(escape(name), justify="right" if column else "left")
    for row in rows:
        rich.add_row(*map(escape, row))
    return rich


def summary_to_dict(table: pd.DataFrame) -> dict[str, Any]:
    """Convert a summary to plain numbers for JSON; values that are not finite become None.

    Returns:
        ``{"cases": n, method: {metric: {"mean": x, "std": y}}}``, n the largest number of cases of
        any method.
    """
    summary: dict[str, Any] = {"cases": int(table["cases"].max())}
    for method, row in table.iterrows():
        numbers = {k: float(value) if math.isfinite(value) else None for k, value in row.items()}
        summary[str(method)] = {
            m: {key: numbers[f"{m}_{key}"] for key in ("mean", "std")} for m in list_metrics(table)
        }
    return summary


def write_tables(records: Sequence[Record], folder: str | Path) -> None:
    """Write ``cases.csv``, ``labels.csv`` (if any), ``summary.json`` and ``summary.md``."""
    folder = Path(folder)
    table, label_table = summarize(records), build_label_table(records)
    write_text(folder / "cases.csv", build_case_table(records).to_csv(index=False))
    (folder / "labels.csv").unlink(missing_ok=True)  # of an earlier evaluation
    if len(label_table):
        write_text(folder / "labels.csv", label_table.to_csv(index=False))
    summary = json.dumps(summary_to_dict(table), indent=2, allow_nan=False)
    write_text(folder / "summary.json", summary)
    write_text(folder / "summary.md", summary_to_markdown(table))
