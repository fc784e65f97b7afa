"""Draw scores of every structure or region as box plots and bars, several methods side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from regnet_lab.errors import UserError
from regnet_lab.evaluation.per_label import (
    LabelGroups,
    average_by_structure,
    compute_structure_statistics,
    list_methods,
    read_label_scores,
)
from regnet_lab.evaluation.results import EvaluationSource
from regnet_lab.metrics.tables import IDENTITY, format_header
from regnet_lab.utils.atomic_io import write_figure, write_text

IDENTITY_COLOR = (0.7, 0.7, 0.7)


def _assign_colors(methods: Sequence[str]) -> dict[str, Any]:
    """Return grey for identity and matplotlib's ten colours for the other methods."""
    palette = matplotlib.color_sequences["tab10"]
    registered = [method for method in methods if method != IDENTITY]
    return {IDENTITY: IDENTITY_COLOR, **{m: palette[i % 10] for i, m in enumerate(registered)}}


def _compute_positions(num_structures: int, num_methods: int) -> np.ndarray:
    """Return (methods, structures) positions: structures one apart, their methods within 0.8."""
    offsets = (np.arange(num_methods) - (num_methods - 1) / 2) * 0.8 / num_methods
    return offsets[:, None] + np.arange(num_structures)


def _add_legend(figure: Figure, methods: Sequence[str], handles: Sequence) -> None:
    columns = max(1, min(len(methods), 80 // max(map(len, methods))))
    figure.legend(handles, methods, loc="outside upper left", ncols=columns, fontsize=8)


def draw_box_plots(table: pd.DataFrame, metric: str = "dice") -> Figure:
    """Draw boxes over cases, the methods of each structure beside one another.

    A box spans the quartiles with the median as a line, whiskers reach the last case within 1.5
    times the box, further cases are dots.

    Args:
        table: From :func:`average_by_structure`.
        metric: Name of the metric of the scores.
    """
    methods, structures = list_methods(table), list(table["structure"].unique())
    positions = _compute_positions(len(structures), len(methods))
    colors = _assign_colors(methods)
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
    methods, structures = list_methods(table), list(table["structure"].unique())
    positions = _compute_positions(len(structures), len(methods))
    colors = _assign_colors(methods)
    statistics = compute_structure_statistics(table).reset_index()
    height = min(1.5 + 0.2 * (positions.size + len(methods)), 60)
    figure = Figure((7, height), layout="constrained")
    axes = figure.subplots()
    handles = []
    for method, y in zip(methods, positions, strict=True):
        rows = statistics[statistics["method"] == method]
        rows = rows.set_index("structure").reindex(structures)
        handles.append(
            axes.barh(
                y, rows["mean"], height=0.75 / len(methods), xerr=rows["std"],
                color=colors[method], error_kw={"elinewidth": 0.8},
            )
        )  # fmt: skip
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
    groups: LabelGroups | None = None,
) -> list[Path]:
    """Write ``<metric>_boxes.png``, ``<metric>_bars.png`` and ``<metric>_structures.csv``.

    Returns:
        The paths of the files.

    Raises:
        UserError: As :func:`read_label_scores` and :func:`average_by_structure`.
    """
    table = average_by_structure(read_label_scores(sources, metric), groups)
    if not len(table):
        raise UserError(f"{', '.join(map(str, sources))}: no value of {metric} is defined.")
    names = ("boxes.png", "bars.png", "structures.csv")
    boxes, bars, structures = paths = [Path(folder) / f"{metric}_{name}" for name in names]
    write_figure(boxes, draw_box_plots(table, metric), dpi=150)
    write_figure(bars, draw_bar_chart(table, metric), dpi=150)
    write_text(structures, compute_structure_statistics(table).to_csv())
    return paths
