"""Line plots: metrics against a number, and training curves from TensorBoard logs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regnet_lab.errors import UserError

DPI = 120


def plot_metrics(frame: pd.DataFrame, x: str, titles: Mapping[str, str], by: str) -> Figure:
    """Plot columns of a table against another column, with a marker for every row.

    Args:
        frame: A column ``<name>_std``, where there is one, gives the error bars of ``<name>``.
        x: Column along the horizontal axis.
        titles: Columns to plot, each in axes of its own, and the titles of these axes.
        by: Column whose values tell the lines apart.
    """
    figure = Figure(figsize=(0.8 + 3.6 * len(titles), 3.4), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, (y, title) in zip(grid, titles.items(), strict=True):
        for label, group in frame.groupby(by, sort=False):
            rows = group.sort_values(x)
            style = {"marker": "o", "markersize": 3, "capsize": 2}
            axes.errorbar(rows[x], rows[y], rows.get(f"{y}_std"), label=label, **style)
        axes.set(xlabel=x, title=title)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def read_scalars(run: str | Path, name: str) -> tuple[list[float], list[float]]:
    """Read minutes of training and values of the scalar ``name`` from a run's TensorBoard log."""
    log = Path(run) / "tensorboard"
    if not log.is_dir():
        raise UserError(f"{run} has no TensorBoard log: give a run directory.")
    accumulator = EventAccumulator(str(log))
    accumulator.Reload()
    if name not in accumulator.Tags()["scalars"]:
        raise UserError(f"{run}: its TensorBoard log has no scalar {name}.")
    start = min(event.wall_time for event in accumulator.Scalars("epoch"))
    events = [event for event in accumulator.Scalars(name) if event.value == event.value]
    return [(event.wall_time - start) / 60 for event in events], [event.value for event in events]


def plot_training_curves(runs: Sequence[str | Path], name: str) -> Figure:
    """Plot the scalar ``name`` of run directories against minutes of training, a line per run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        axes.plot(*read_scalars(run, name), marker="o", markersize=3, label=Path(run).name)
    axes.set(xlabel="minutes of training", ylabel=name)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
