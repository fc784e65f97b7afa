"""The runs of a sweep in one table and picture: ``python -m regnet_lab.evaluation.sweep FOLDER``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.evaluation.multirun import JOB
from regnet_lab.utils.atomic_io import write_figure, write_text

DECADES = 1.5  # from which span on an axis of positive numbers is logarithmic
TICKS = 5
SORTS = {"max": False, "min": True}


def number(text: str) -> float | str:
    """The number that a value is, or the value."""
    try:
        return float(text)
    except ValueError:
        return text


def given(overrides: list[str]) -> dict[str, float | str]:
    """The settings of a job by name; what is removed is called ``removed``."""
    pairs = [(word.lstrip("+~"), word[:1]) for word in overrides]
    return {
        word.partition("=")[0]: "removed" if sign == "~" else number(word.partition("=")[2])
        for word, sign in pairs
    }


def jobs(sweep: Path) -> pd.DataFrame:
    """A row for every job that has ended: ``job``, what differs between jobs, the ``monitor``, its
    last ``value`` and its ``best``, ``steps``, every other number, and ``error``.

    Raises:
        UserError: No job has.
    """
    paths = sorted(sweep.glob(f"*/{JOB}"), key=lambda path: (len(path.parent.name), path))
    if not paths:
        raise UserError(f"{sweep}: no job of a sweep has ended there; give the folder of a sweep.")
    notes = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    chosen = pd.DataFrame([given(note["overrides"]) for note in notes])
    varied = [name for name in chosen if chosen[name].nunique(dropna=False) > 1]
    rows: list[dict[str, Any]] = []
    for path, note in zip(paths, notes, strict=True):
        result = path.with_name("result.json")
        known = json.loads(result.read_text("utf-8")) if result.is_file() else {}
        numbers = known.pop("metrics", {})
        rows.append({**known, **numbers, "error": note["error"]})
    table = pd.concat([chosen[varied], pd.DataFrame(rows)], axis=1)
    table.attrs["varied"] = varied
    table.insert(0, "job", [path.parent.name for path in paths])
    return table


def scaled(values: pd.Series) -> tuple[NDArray[np.float64], list[float], list[str]]:
    """Heights in [0, 1] of the values of an axis, and those and the names of its ticks.

    Positive numbers over more than a decade and a half go by their logarithm, words by their
    alphabet, and where all are one they stand in the middle.
    """
    if not pd.api.types.is_numeric_dtype(values):
        words = sorted(map(str, values.unique()))
        heights = np.linspace(0, 1, len(words)) if len(words) > 1 else np.full(1, 0.5)
        of_word = dict(zip(words, heights, strict=True))
        return values.map(str).map(of_word).to_numpy(float), list(heights), words
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and np.log10(high / low) > DECADES
    bend = np.log10 if logarithmic else np.asarray
    if high == low:
        return np.full(len(values), 0.5), [0.5], [f"{low:.4g}"]
    start, span = bend(low), bend(high) - bend(low)
    few = np.unique(values)
    ticks = np.linspace(0, 1, TICKS)
    marks = few if len(few) <= TICKS else np.asarray(start + span * ticks)
    marks = 10**marks if logarithmic and len(few) > TICKS else marks
    heights = (bend(values.to_numpy(float)) - start) / span
    return heights, list((bend(marks) - start) / span), [f"{mark:.4g}" for mark in marks]


def parallel_coordinates(table: pd.DataFrame, varied: list[str], mode: str = "max") -> Figure:
    """An axis for every setting and one for the monitor; a line for every job, coloured by the
    monitor's last value, the best one thick.  Jobs without a value are left out and counted.
    """
    whole = table.dropna(subset=["value"]).sort_values("value", ascending=SORTS[mode])
    whole = whole.iloc[::-1]  # the best one on top
    names = [*varied, "value"]
    columns = [scaled(whole[name]) for name in names]
    colour = Normalize(whole["value"].min(), whole["value"].max())
    figure = Figure(figsize=(2.2 + 1.6 * len(names), 4.5), layout="constrained")
    axes = figure.subplots()
    heights = np.stack([column[0] for column in columns], axis=1)
    for row, (job, value) in zip(heights, whole[["job", "value"]].to_numpy(), strict=True):
        width = 3 if job == whole["job"].iloc[-1] else 1.2
        shade = colormaps["viridis"](colour(float(value)))
        axes.plot(range(len(names)), row, color=shade, linewidth=width, label=f"job {job}")
    for place, (_, marks, words) in enumerate(columns):
        _axis(axes, place, marks, words)
    monitor = str(whole["monitor"].iloc[0])
    axes.set_xticks(range(len(names)), [*varied, monitor])
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.4), ylim=(-0.05, 1.05))
    lacking = len(table) - len(whole)
    axes.set_title(f"{len(whole)} jobs" + (f", {lacking} without a value" if lacking else ""))
    figure.colorbar(ScalarMappable(colour, "viridis"), ax=axes, label=monitor)
    return figure


def _axis(axes: Axes, place: int, marks: list[float], words: list[str]) -> None:
    axes.axvline(place, color="0.6", linewidth=0.8, zorder=0)
    for height, word in zip(marks, words, strict=True):
        axes.annotate(word, (place, height), (4, 0), textcoords="offset points", fontsize=8)


def markdown(table: pd.DataFrame, varied: list[str], mode: str = "max") -> str:
    """Settings, last and best value of the monitor, steps; the best job in bold, failed ones with
    their reason.
    """
    done = table.get("value", pd.Series(dtype=float)).dropna()
    best = (done.idxmax() if mode == "max" else done.idxmin()) if len(done) else None
    monitor = table["monitor"].dropna().iloc[0] if len(done) else "value"
    lines = [f"| job | {' | '.join([*varied, str(monitor), 'best', 'steps'])} |"]
    lines.append("|--:" * (len(varied) + 4) + "|")
    for index, row in table.iterrows():
        shown = [row["job"], *(row[name] for name in varied)]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in shown]
        if pd.notna(row["error"]):
            cells += [f"failed: {row['error']}", "", ""]
        else:
            cells += [f"{row['value']:.4f}", f"{row['best']:.4f}", f"{row['steps']:g}"]
        bold = [f"**{cell}**" for cell in cells] if index == best else cells
        lines.append(f"| {' | '.join(bold)} |")
    return "\n".join(lines) + "\n"


def write(sweep: Path, mode: str = "max") -> pd.DataFrame:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` of the jobs that have ended so far."""
    table = jobs(sweep)
    varied = table.attrs["varied"]
    write_text(sweep / "sweep.csv", table.to_csv(index=False))
    write_text(sweep / "sweep.md", markdown(table, varied, mode))
    if "value" in table and table["value"].notna().any():
        write_figure(sweep / "sweep.png", parallel_coordinates(table, varied, mode), dpi=120)
    return table


def main() -> None:
    """Write and print what the command line asks for."""
    parser = argparse.ArgumentParser("python -m regnet_lab.evaluation.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a sweep, such as outputs/sweeps/...")
    parser.add_argument("--mode", choices=SORTS, default="max", help="which value is best (max)")
    arguments = parser.parse_args()
    try:
        write(arguments.folder, arguments.mode)
    except UserError as error:
        sys.exit(f"report: {error}")
    sys.stdout.write((arguments.folder / "sweep.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
