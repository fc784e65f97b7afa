"""Write a leaderboard as CSV, Markdown, LaTeX and HTML."""

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from regnet_lab.evaluation.leaderboard import STATISTICS
from regnet_lab.metrics import tables
from regnet_lab.metrics.tables import (
    IDENTITY,
    TextTable,
    format_header,
    format_number,
    list_metrics,
)
from regnet_lab.utils.atomic_io import write_text

STATISTIC_HEADERS = {
    "mean": "mean",
    "sd": "sd",
    "median": "median",
    "worst30": "worst 30 %",
    "low": "95 % from",
    "high": "to",
    "p": "p",
}
STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def format_p_value(p: float) -> str:
    """Format a p-value as ``0.013`` or ``< 0.001``, a dash if it is NaN."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def make_overview_table(board: pd.DataFrame) -> TextTable:
    """List rank, mean ± standard deviation of each metric, and costs of each method."""
    metrics = list_metrics(board)
    costs = ["seconds", "memory (MB)", "parameters", "on"]
    header = ["method", "rank", *map(format_header, metrics), *costs]
    return [header, *(_make_overview_row(board, str(m), metrics) for m in board.index)]


def _make_overview_row(board: pd.DataFrame, method: str, metrics: Sequence[str]) -> list[str]:
    values = board.loc[method]
    scores = [tables.format_mean_std(m, values[f"{m}_mean"], values[f"{m}_sd"]) for m in metrics]
    costs = [format_number(name, values.get(name)) for name in tables.COST_COLUMNS]
    parameters, device = values.get("parameters"), values.get("device")
    return [
        method,
        format_number("rank", values["rank"]),
        *scores,
        *costs,
        "-" if pd.isna(parameters) else f"{parameters:,.0f}",
        device if isinstance(device, str) else "-",
    ]


def make_metric_table(board: pd.DataFrame, metric: str) -> TextTable:
    """List every statistic of one metric."""
    rows = [
        [
            str(method),
            *(format_number(metric, values[f"{metric}_{s}"]) for s in STATISTICS[:-1]),
            format_p_value(values[f"{metric}_p"]),
        ]
        for method, values in board.iterrows()
    ]
    return [["method", *(STATISTIC_HEADERS[s] for s in STATISTICS)], *rows]


def make_footnote(board: pd.DataFrame) -> str:
    """Explain the columns of the tables."""
    return (
        f"{board['cases'].iloc[0]} cases, the same for all. Rank: Learn2Reg's score, 0.1 to 1. "
        "Standard deviations divide by n. Worst 30 %: the 30th percentile of Dice, the 70th where "
        "less is better. 95 %: bootstrap interval of the mean. "
        f"p: Wilcoxon's signed-rank test against {board.attrs.get('reference') or IDENTITY}, after "
        "Holm. Dice30: the 30 % of structures that overlapped least before registration."
    )


def make_tables(board: pd.DataFrame) -> dict[str, TextTable]:
    """Return all tables of a leaderboard by title."""
    by_metric = {format_header(m): make_metric_table(board, m) for m in list_metrics(board)}
    return {"All": make_overview_table(board)} | by_metric


def to_markdown(board: pd.DataFrame) -> str:
    """Format all tables as Markdown."""
    parts = [f"## {title}\n\n{tables.to_markdown(t)}" for title, t in make_tables(board).items()]
    return f"# Leaderboard\n\n{make_footnote(board)}\n\n" + "\n".join(parts)


def to_latex(board: pd.DataFrame) -> str:
    """Format all tables as LaTeX, for the package booktabs."""
    parts = [f"% {title}\n{tables.to_latex(t)}" for title, t in make_tables(board).items()]
    return f"% {make_footnote(board)}\n\n" + "\n".join(parts)


def to_html(board: pd.DataFrame) -> str:
    """Format all tables as one HTML file that needs no other file."""
    parts = "".join(
        f"<h2>{html.escape(title)}</h2>\n{tables.to_html(t)}\n"
        for title, t in make_tables(board).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>\n'
        f"<style>{STYLE}</style>\n<h1>Leaderboard</h1>\n"
        f"<p>{html.escape(make_footnote(board))}</p>\n{parts}</html>\n"
    )


FORMATTERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "csv": lambda board: board.to_csv(),
    "md": to_markdown,
    "tex": to_latex,
    "html": to_html,
}


def write_leaderboard(board: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write ``leaderboard.csv``, ``.md``, ``.tex`` and ``.html``; return their paths.

    Raises:
        UserError: The folder cannot be written to.
    """
    paths = {Path(folder) / f"leaderboard.{ending}": form for ending, form in FORMATTERS.items()}
    for path, format_board in paths.items():
        write_text(path, format_board(board))
    return list(paths)
