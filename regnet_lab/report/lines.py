"""Numbers against a number: one axis for each, one line for each group."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

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
