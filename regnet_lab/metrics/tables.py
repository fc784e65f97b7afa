"""From one record for each case and method to the tables people read and programs parse.

A record is a flat dict: ``case``, ``method``, then numbers: a metric's name carries its unit
(``hd95_mm``), and what follows a slash is a label (``dice/1``).  NaN means "not defined for this
case" and is left out of means; standard deviations divide by n (ddof 0), as Learn2Reg does.
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

IDENTITY = "identity"
COST = ("seconds", "peak_mb")  # what an answer costs; the columns after those of its quality
HEADERS = {  # a metric's name without its unit: what readers call it, decimals
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


def _unique(records: Sequence[Record]) -> list[Record]:
    """The first record of each (method, case): DDP repeats cases to fill its last batch."""
    if not records:
        raise UserError("There is nothing to report: no case was evaluated; check the data split.")
    unique: dict[tuple[str, str], Record] = {}
    for record in records:
        unique.setdefault((record["method"], record["case"]), record)
    return list(unique.values())


def cases(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each method and case, without the values of single labels.

    Raises:
        UserError: There are no records.
    """
    rows = [{k: v for k, v in r.items() if "/" not in k} for r in _unique(records)]
    frame = pd.DataFrame(rows)
    metrics = [name for name in frame if name not in ("case", "method")]
    return frame[["case", "method", *sorted(metrics, key=COST.__contains__)]]


def labels(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each case, method and label, one column for each metric known by label."""
    rows: dict[tuple[str, str, int], dict[str, float]] = {}
    for record in _unique(records):
        for key in filter(lambda k: "/" in k, record):
            metric, label = key.rsplit("/", 1)
            rows.setdefault((record["case"], record["method"], int(label)), {})[metric] = record[
                key
            ]
    keys = ["case", "method", "label"]
    listed = [dict(zip(keys, key, strict=True), **values) for key, values in rows.items()]
    return pd.DataFrame(listed) if listed else pd.DataFrame(columns=keys)


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each method, identity first: ``cases``, then ``<metric>_mean``, ``<metric>_std``.

    Raises:
        UserError: There are no records.
    """
    frame = cases(records)
    groups = frame.groupby("method", sort=False)
    table = groups.size().to_frame("cases")
    for metric in frame.select_dtypes("number"):
        table[f"{metric}_mean"] = groups[metric].mean()
        table[f"{metric}_std"] = groups[metric].std(ddof=0)
    return table.loc[sorted(table.index, key=lambda method: method != IDENTITY)]


def split_unit(metric: str) -> tuple[str, str]:
    """``hd95_mm`` as name and unit; no unit where the name does not end in one."""
    name, _, unit = metric.rpartition("_")
    return (name, UNITS[unit]) if unit in UNITS else (metric, "")


def known(name: str) -> tuple[str, int] | None:
    """What readers call a metric without its unit, and its decimals: ``mae_axis0``, MAE axis0."""
    if name.startswith("mae_"):
        return name.replace("mae_", "MAE ").replace("_", " "), 2
    return HEADERS.get(name)


def header(metric: str) -> str:
    """``hd95_mm`` as readers know it, HD95 (mm); a name not known is shown as it is."""
    name, unit = split_unit(metric)
    if (found := known(name)) is None:
        return metric
    return f"{found[0]} ({unit})" if unit else found[0]


def _metrics(table: pd.DataFrame) -> list[str]:
    return [name.removesuffix("_mean") for name in table if name.endswith("_mean")]


def _cell(metric: str, mean: float, std: float) -> str:
    """Mean ± std with the decimals the metric deserves; a dash where no case defines it."""
    if math.isnan(mean):
        return "-"
    found = known(split_unit(metric)[0])
    style = f".{found[1]}f" if found else ".4g"
    return f"{mean:{style}} ± {std:{style}}"


def grid(table: pd.DataFrame) -> list[list[str]]:
    """The summary as text, header row first."""
    metrics = _metrics(table)
    rows = [
        [str(method), str(row["cases"].astype(int))]
        + [_cell(metric, row[f"{metric}_mean"], row[f"{metric}_std"]) for metric in metrics]
        for method, row in table.iterrows()
    ]
    return [["method", "cases", *map(header, metrics)], *rows]


def markdown(table: pd.DataFrame) -> str:
    """A summary as a Markdown table whose columns also line up as plain text."""
    return markdown_grid(grid(table))


def markdown_grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the header first, as such a table."""
    cells = [[text.replace("|", r"\|") for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    first, *rest = widths
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in rest)]
    lines = [
        [row[0].ljust(first), *map(str.rjust, row[1:], rest)]
        for row in (cells[0], rule, *cells[1:])
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rich_table(table: pd.DataFrame) -> Table:
    """A summary for the terminal: one column for each method, so that it fits a narrow one."""
    methods, *rows = zip(*grid(table), strict=True)
    rich = Table(title="mean ± standard deviation over cases")
    for place, name in enumerate(["", *methods[1:]]):
        rich.add_column(escape(name), justify="right" if place else "left")
    for row in rows:
        rich.add_row(*map(escape, row))
    return rich


def as_dict(table: pd.DataFrame) -> dict[str, Any]:
    """A summary as plain numbers for JSON; what is not finite becomes None.

    Returns:
        ``{"cases": n, method: {metric: {"mean": x, "std": y}}}``, n the most any method saw.
    """

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    methods = {
        str(method): {
            metric: {key: number(row[f"{metric}_{key}"]) for key in ("mean", "std")}
            for metric in _metrics(table)
        }
        for method, row in table.iterrows()
    }
    return {"cases": int(table["cases"].max()), **methods}


def write(records: Sequence[Record], folder: str | Path) -> None:
    """``cases.csv``, ``labels.csv`` where there are labels, ``summary.json`` and ``summary.md``.

    Raises:
        UserError: There are no records, or ``folder`` cannot be written to.
    """
    table, by_label = summary(records), labels(records)
    folder = Path(folder)
    write_text(folder / "cases.csv", cases(records).to_csv(index=False))
    (folder / "labels.csv").unlink(missing_ok=True)  # an earlier report's
    if len(by_label):
        write_text(folder / "labels.csv", by_label.to_csv(index=False))
    write_text(folder / "summary.json", json.dumps(as_dict(table), indent=2, allow_nan=False))
    write_text(folder / "summary.md", markdown(table))
