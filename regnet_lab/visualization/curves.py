"""Numbers against a number: one axis for each, one line for each group."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regnet_lab.errors import UserError

DPI = 120


def lines(frame: pd.DataFrame, x: str, shown: Mapping[str, str], by: str) -> Figure:
    """Lines with a dot for every row.

    Args:
        frame: A row for each dot; where there is a column ``<y>_std``, it is the bar's half.
        x: Column along the horizontal axis.
        shown: Columns to show, each on an axis of its own, with the name it is given there.
        by: Column whose values are the lines.
    """
    figure = Figure(figsize=(0.8 + 3.6 * len(shown), 3.4), dpi=DPI, layout="constrained")
    for axes, (y, title) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for name, group in frame.groupby(by, sort=False):
            group = group.sort_values(x)
            axes.errorbar(
                group[x],
                group[y],
                group.get(f"{y}_std"),
                label=name,
                marker="o",
                markersize=3,
                capsize=2,
            )
        axes.set(xlabel=x, title=title)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def scalars(run: str | Path, name: str) -> tuple[list[float], list[float]]:
    """Minutes of training and values of ``name`` from a run's TensorBoard log.

    Raises:
        UserError: The run has no such log or no such number.
    """
    log = Path(run) / "tensorboard"
    if not log.is_dir():
        raise UserError(f"{run}: has no TensorBoard log; give the folder of a run.")
    events = EventAccumulator(str(log))
    events.Reload()
    if name not in events.Tags()["scalars"]:
        raise UserError(f"{run}: its TensorBoard log has no {name}.")
    known = [event for event in events.Scalars(name) if event.value == event.value]
    start = min(event.wall_time for event in events.Scalars("epoch"))
    return [(event.wall_time - start) / 60 for event in known], [event.value for event in known]


def curves(runs: list[str], name: str) -> Figure:
    """One line for each run."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        axes.plot(*scalars(run, name), marker="o", markersize=3, label=Path(run).name)
    axes.set(xlabel="minutes of training", ylabel=name)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def main() -> None:
    """Write the picture the command line asks for."""
    if len(sys.argv) < 4:
        sys.exit(
            "usage: python -m regnet_lab.visualization.curves <scalar> <picture> <run> [<run> ...]"
        )
    name, picture, *runs = sys.argv[1:]
    try:
        curves(runs, name).savefig(picture, dpi=120)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
