"""Report the trainings of a sweep (``train.py -m``): a table and parallel coordinates."""

import json
from contextlib import suppress
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
from regnet_lab.evaluation.multirun import read_job_files
from regnet_lab.metrics.tables import to_markdown
from regnet_lab.utils.atomic_io import write_figure, write_text

RESULT_FILE = "result.json"
LOG_AXIS_DECADES = 1.5  # an axis of positive numbers over more decades is logarithmic
MAX_TICKS = 5
ASCENDING = {"max": False, "min": True}  # sort order with the best value first, by monitor mode


def parse_overrides(overrides: list[str]) -> dict[str, float | str]:
    """Return the values of a job's overrides by key; a deleted key is ``removed``."""
    settings: dict[str, float | str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        settings[key] = "removed" if override.startswith("~") else value
        with suppress(ValueError):
            settings[key] = float(settings[key])
    return settings


def tabulate_sweep(sweep: Path) -> pd.DataFrame:
    """Build a table with a row for each job that has ended.

    Returns:
        ``job``, the settings that vary (``attrs["varied"]``), ``monitor``, its last ``value`` and
        its ``best``, ``steps``, every other logged number, and ``error``.
    """
    jobs = read_job_files(sweep)
    if not jobs:
        raise UserError(f"{sweep}: no job of a sweep has ended there; give the folder of a sweep.")
    settings = pd.DataFrame([parse_overrides(job["overrides"]) for job in jobs.values()])
    varied = [name for name in settings if settings[name].nunique(dropna=False) > 1]
    rows: list[dict[str, Any]] = []
    for folder, job in jobs.items():
        path = folder / RESULT_FILE
        result = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        metrics = result.pop("metrics", {})
        rows.append({**result, **metrics, "error": job["error"]})
    table = pd.concat([settings[varied], pd.DataFrame(rows)], axis=1)
    table.attrs["varied"] = varied
    table.insert(0, "job", [folder.name for folder in jobs])
    return table


def scale_axis(values: pd.Series) -> tuple[NDArray[np.float64], list[float], list[str]]:
    """Scale the values of an axis to heights in [0, 1].

    Positive numbers over more than ``LOG_AXIS_DECADES`` are scaled logarithmically, words are
    sorted, and a constant lies in the middle.

    Returns:
        Heights of the values, heights of the ticks, and labels of the ticks.
    """
    if not pd.api.types.is_numeric_dtype(values):
        words = sorted(map(str, values.unique()))
        word_heights = np.linspace(0, 1, len(words)) if len(words) > 1 else np.full(1, 0.5)
        by_word = dict(zip(words, word_heights, strict=True))
        return values.map(str).map(by_word).to_numpy(float), list(word_heights), words
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and np.log10(high / low) > LOG_AXIS_DECADES
    transform = np.log10 if logarithmic else np.asarray
    if high == low:
        return np.full(len(values), 0.5), [0.5], [f"{low:.4g}"]
    start, span = transform(low), transform(high) - transform(low)
    ticks = np.unique(values)
    if len(ticks) > MAX_TICKS:
        ticks = np.asarray(start + span * np.linspace(0, 1, MAX_TICKS))
        ticks = 10**ticks if logarithmic else ticks
    heights = (transform(values.to_numpy(float)) - start) / span
    tick_heights = list((transform(ticks) - start) / span)
    return heights, tick_heights, [f"{tick:.4g}" for tick in ticks]


def draw_parallel_coordinates(table: pd.DataFrame, varied: list[str], mode: str = "max") -> Figure:
    """Draw an axis for every setting and one for the monitor, a line for every job.

    Lines are coloured by the monitor's last value, the best job is thick.  Jobs without a value
    are left out and counted in the title.
    """
    complete = table.dropna(subset=["value"]).sort_values("value", ascending=ASCENDING[mode])
    complete = complete.iloc[::-1]  # the best one is drawn last
    names = [*varied, "value"]
    columns = [scale_axis(complete[name]) for name in names]
    color_scale = Normalize(complete["value"].min(), complete["value"].max())
    figure = Figure(figsize=(2.2 + 1.6 * len(names), 4.5), layout="constrained")
    axes = figure.subplots()
    lines = np.stack([heights for heights, _, _ in columns], axis=1)
    for line, (job, value) in zip(lines, complete[["job", "value"]].to_numpy(), strict=True):
        width = 3 if job == complete["job"].iloc[-1] else 1.2
        color = colormaps["viridis"](color_scale(float(value)))
        axes.plot(range(len(names)), line, color=color, linewidth=width, label=f"job {job}")
    for x, (_, tick_heights, tick_labels) in enumerate(columns):
        _draw_axis(axes, x, tick_heights, tick_labels)
    monitor = str(complete["monitor"].iloc[0])
    axes.set_xticks(range(len(names)), [*varied, monitor])
    axes.set(yticks=[], xlim=(-0.3, len(names) - 0.4), ylim=(-0.05, 1.05))
    missing = len(table) - len(complete)
    axes.set_title(f"{len(complete)} jobs" + (f", {missing} without a value" if missing else ""))
    figure.colorbar(ScalarMappable(color_scale, "viridis"), ax=axes, label=monitor)
    return figure


def _draw_axis(axes: Axes, x: int, tick_heights: list[float], tick_labels: list[str]) -> None:
    axes.axvline(x, color="0.6", linewidth=0.8, zorder=0)
    for height, label in zip(tick_heights, tick_labels, strict=True):
        axes.annotate(label, (x, height), (4, 0), textcoords="offset points", fontsize=8)


def format_sweep_table(table: pd.DataFrame, varied: list[str], mode: str = "max") -> str:
    """Format settings, last and best value of the monitor and steps of each job as Markdown.

    The best job is bold; failed jobs have their error in place of a value.
    """
    values = table.get("value", pd.Series(dtype=float)).dropna()
    best = (values.idxmax() if mode == "max" else values.idxmin()) if len(values) else None
    monitor = str(table["monitor"].dropna().iloc[0]) if len(values) else "value"
    rows = [["job", *varied, monitor, "best", "steps"]]
    for index, row in table.iterrows():
        settings = [row["job"], *(row[name] for name in varied)]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in settings]
        if pd.notna(row["error"]):
            cells += [f"failed: {row['error']}", "", ""]
        else:
            cells += [f"{row['value']:.4f}", f"{row['best']:.4f}", f"{row['steps']:g}"]
        rows.append([f"**{cell}**" for cell in cells] if index == best else cells)
    return to_markdown(rows)


def write_sweep_report(sweep: Path, mode: str = "max") -> pd.DataFrame:
    """Write ``sweep.csv``, ``sweep.md`` and ``sweep.png`` of the jobs that have ended so far."""
    table = tabulate_sweep(sweep)
    varied = table.attrs["varied"]
    write_text(sweep / "sweep.csv", table.to_csv(index=False))
    write_text(sweep / "sweep.md", format_sweep_table(table, varied, mode))
    if "value" in table and table["value"].notna().any():
        figure = draw_parallel_coordinates(table, varied, mode)
        write_figure(sweep / "sweep.png", figure, dpi=120)
    return table
