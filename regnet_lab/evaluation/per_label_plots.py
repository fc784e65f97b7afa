"""Draw scores of every structure or region as box plots and bars, several methods side by side."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from regnet_lab.errors import UserError
from regnet_lab.evaluation import per_label
from regnet_lab.evaluation.per_label import compute_structure_statistics
from regnet_lab.evaluation.results import EvaluationSource
from regnet_lab.metrics.tables import IDENTITY, format_header
from regnet_lab.utils.atomic_io import write_figure, write_text

IDENTITY_COLOR = (0.7, 0.7, 0.7)


def _lay_out(table: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray, dict[str, Any]]:
    """Return methods, structures, positions and colors.

    Positions are (methods, structures): structures one apart, their methods within 0.8.  Identity
    is grey, other methods have matplotlib's ten colours.
    """
    methods, structures = per_label.list_methods(table), list(table["structure"].unique())
    num = len(methods)
    offsets = (np.arange(num) - (num - 1) / 2) * 0.8 / num
    registered = [method for method in methods if method != IDENTITY]
    colors = dict(zip(registered, cycle(matplotlib.color_sequences["tab10"]), strict=False))
    positions = offsets[:, None] + np.arange(len(structures))
    return methods, structures, positions, {IDENTITY: IDENTITY_COLOR, **colors}


def _add_legend(figure: Figure, methods: Sequence[str], handles: Sequence) -> None:
    columns = max(1, min(len(methods), 80 // max(map(len, methods))))
    figure.legend(handles, methods, loc="outside upper left", ncols=columns, fontsize=8)


def draw_box_plots(table: pd.DataFrame, metric: str = "dice") -> Figure:
    """Draw boxes over cases, the methods of each structure beside one another.

    A box spans the quartiles with the median as a line, whiskers reach the last case within 1.5
    times the box, further cases are dots.  The table is that of
    :func:`regnet_lab.evaluation.per_label.average_by_structure`.
    """
    methods, structures, positions, colors = _lay_out(table)
    width = max(5.0, 1.5 + 0.22 * positions.size)
    figure = Figure((min(width, 40), 4 + 0.2 * len(methods)), layout="constrained")
    axes = figure.subplots()
    handles = []
    for method, x in zip(methods, positions, strict=True):
        rows = table[table["method"] == method]
        values = [rows.loc[rows["structure"] == s, "score"].to_numpy() for s in structures]
        box_plot = axes.boxplot(
            values, positions=x, widths=0.7 / len(methods), patch_artist=True,
            manage_ticks=False, flierprops={"marker": ".", "markersize": 3},
            medianprops={"color": "black"}, boxprops={"facecolor": colors[method]},
        )  # fmt: skip
        handles.append(box_plot["boxes"][0])
    axes.set_xticks(range(len(structures)), structures, rotation=0 if len(structures) < 8 else 90)
    axes.set(ylabel=format_header(metric), xlim=(-0.6, len(structures) - 0.4))
    axes.grid(axis="y", alpha=0.3)
    _add_legend(figure, methods, handles)
    return figure


def draw_bar_chart(table: pd.DataFrame, metric: str = "dice") -> Figure:
    """Draw horizontal bars of the mean over cases with one standard deviation.

    The first structure and method are on top.  Arguments as in :func:`draw_box_plots`.
    """
    methods, structures, positions, colors = _lay_out(table)
    statistics = compute_structure_statistics(table).reset_index()
    height = min(1.5 + 0.2 * (positions.size + len(methods)), 60)
    figure = Figure((7, height), layout="constrained")
    axes = figure.subplots()
    handles = []
    for method, y in zip(methods, positions, strict=True):
        rows = statistics[statistics["method"] == method]
        rows = rows.set_index("structure").reindex(structures)
        bars = axes.barh(
            y, rows["mean"], height=0.75 / len(methods), xerr=rows["std"],
            color=colors[method], error_kw={"elinewidth": 0.8},
        )  # fmt: skip
        handles.append(bars)
    axes.set_yticks(range(len(structures)), structures)
    axes.set(xlabel=f"{format_header(metric)}, mean ± standard deviation over cases")
    axes.set_ylim(len(structures) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    _add_legend(figure, methods, handles)
    return figure


def write_label_figures(
    sources: Sequence[EvaluationSource],
    folder: str | Path,
    metric: str = "dice",
    groups: per_label.LabelGroups | None = None,
) -> list[Path]:
    """Write ``<metric>_boxes.png``, ``_bars.png`` and ``_structures.csv``; return their paths."""
    table = per_label.average_by_structure(per_label.read_label_scores(sources, metric), groups)
    if not len(table):
        raise UserError(f"{', '.join(map(str, sources))}: no value of {metric} is defined.")
    names = ("boxes.png", "bars.png", "structures.csv")
    boxes, bars, structures = paths = [Path(folder) / f"{metric}_{name}" for name in names]
    write_figure(boxes, draw_box_plots(table, metric), dpi=150)
    write_figure(bars, draw_bar_chart(table, metric), dpi=150)
    write_text(structures, compute_structure_statistics(table).to_csv())
    return paths
