"""Dice of every structure or region, several methods side by side, from evaluation folders:
``python -m regnet_lab.evaluation.per_label_plots FOLDER... [groups=YAML] [metric=dice] [out=FOLDER]``.

Reads each folder's ``labels.csv`` and writes ``<metric>_boxes.png``, ``<metric>_bars.png`` and
``<metric>_structures.csv``.  A box spans the quartiles over cases, its line is the median, its
whiskers reach the last case within 1.5 times the box, further cases are dots.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from regnet_lab.errors import UserError
from regnet_lab.evaluation.per_label import (
    Groups,
    by_structure,
    ordered,
    read_groups,
    scores,
    statistics,
)
from regnet_lab.metrics.tables import IDENTITY, header
from regnet_lab.utils.atomic_io import write_figure, write_text


def _colours(methods: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Grey for no registration, and the ten of matplotlib for the others."""
    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    others = [method for method in methods if method != IDENTITY]
    chosen = {method: palette[place % 10] for place, method in enumerate(others)}
    return {IDENTITY: (0.7, 0.7, 0.7)} | chosen


def _places(count: int, methods: int) -> np.ndarray:
    """(methods, structures) positions: structures one apart, their methods within 0.8."""
    offsets = (np.arange(methods) - (methods - 1) / 2) * 0.8 / methods
    return offsets[:, None] + np.arange(count)


def _legend(figure: Figure, methods: Sequence[str], handles: Sequence) -> None:
    columns = max(1, min(len(methods), 80 // max(map(len, methods))))
    figure.legend(handles, methods, loc="outside upper left", ncols=columns, fontsize=8)


def boxes(table: pd.DataFrame, metric: str = "dice") -> Figure:
    """Boxes over cases, structures side by side and the methods of each beside one another.

    Args:
        table: As :func:`by_structure` gives it.
        metric: What the scores are.
    """
    methods, structures = ordered(table), list(table["structure"].unique())
    places, colours = _places(len(structures), len(methods)), _colours(methods)
    wide = max(5.0, 1.5 + 0.22 * places.size)
    figure = Figure((min(wide, 40), 4 + 0.2 * len(methods)), layout="constrained")
    axes = figure.subplots()
    handles = []
    for method, at in zip(methods, places, strict=True):
        own = table[table["method"] == method]
        values = [own.loc[own["structure"] == s, "score"].to_numpy() for s in structures]
        drawn = axes.boxplot(
            values, positions=at, widths=0.7 / len(methods), patch_artist=True,
            manage_ticks=False, flierprops={"marker": ".", "markersize": 3},
            medianprops={"color": "black"}, boxprops={"facecolor": colours[method]},
        )  # fmt: skip
        handles.append(drawn["boxes"][0])
    axes.set_xticks(range(len(structures)), structures, rotation=0 if len(structures) < 8 else 90)
    axes.set(ylabel=header(metric), xlim=(-0.6, len(structures) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    _legend(figure, methods, handles)
    return figure


def bars(table: pd.DataFrame, metric: str = "dice") -> Figure:
    """Horizontal bars of the mean over cases, with one standard deviation; the first structure and
    method on top.  Arguments as in :func:`boxes`.
    """
    methods, structures = ordered(table), list(table["structure"].unique())
    places, colours = _places(len(structures), len(methods)), _colours(methods)
    numbers = statistics(table).reset_index()
    figure = Figure((7, min(1.5 + 0.2 * (places.size + len(methods)), 60)), layout="constrained")
    axes = figure.subplots()
    handles = []
    for method, at in zip(methods, places, strict=True):
        own = numbers[numbers["method"] == method].set_index("structure").reindex(structures)
        handles.append(
            axes.barh(
                at, own["mean"], height=0.75 / len(methods), xerr=own["std"],
                color=colours[method], error_kw={"elinewidth": 0.8},
            )
        )  # fmt: skip
    axes.set_yticks(range(len(structures)), structures)
    axes.set(xlabel=f"{header(metric)}, mean ± standard deviation over cases")
    axes.set_ylim(len(structures) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    _legend(figure, methods, handles)
    return figure


def write(
    folders: Sequence[str | Path],
    out: str | Path,
    metric: str = "dice",
    groups: Groups | None = None,
) -> None:
    """Both pictures and the numbers in them.

    Raises:
        UserError: As :func:`scores` and :func:`by_structure`.
    """
    table = by_structure(scores(folders, metric), groups)
    if not len(table):
        raise UserError(f"{', '.join(map(str, folders))}: no value of {metric} is defined.")
    write_figure(Path(out) / f"{metric}_boxes.png", boxes(table, metric), dpi=150)
    write_figure(Path(out) / f"{metric}_bars.png", bars(table, metric), dpi=150)
    write_text(Path(out) / f"{metric}_structures.csv", statistics(table).to_csv())


def main() -> None:
    """Write what the command line asks for."""
    options = {"groups": "", "metric": "dice", "out": "."}
    given = dict(
        a.split("=", 1) for a in sys.argv[1:] if a.split("=", 1)[0] in options and "=" in a
    )
    folders = [a for a in sys.argv[1:] if a.split("=", 1)[0] not in given]
    options |= given
    if not folders:
        sys.exit(
            "usage: python -m regnet_lab.evaluation.per_label_plots <evaluation folder> [<another> ...] "
            "[groups=<yaml>] [metric=dice] [out=<folder>]"
        )
    try:
        groups = read_groups(options["groups"]) if options["groups"] else None
        write(folders, options["out"], options["metric"], groups)
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
