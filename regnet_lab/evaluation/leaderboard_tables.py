"""Write a leaderboard as CSV, Markdown, LaTeX and HTML."""

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from regnet_lab.evaluation.leaderboard import STATISTICS
from regnet_lab.metrics import tables
from regnet_lab.metrics.tables import TextTable, format_header, format_number, list_metrics
from regnet_lab.utils.atomic_io import write_text

STATISTIC_HEADERS = ("mean", "sd", "median", "worst 30 %", "95 % from", "to", "p")
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


def make_overview_table(leaderboard: pd.DataFrame) -> TextTable:
    """List rank, mean ± standard deviation of each metric, and costs of each method."""
    metrics = list_metrics(leaderboard)
    costs = ["seconds", "memory (MB)", "parameters", "on"]
    header = ["method", "rank", *map(format_header, metrics), *costs]
    return [header, *(_make_overview_row(leaderboard, str(m), metrics) for m in leaderboard.index)]


def _make_overview_row(leaderboard: pd.DataFrame, method: str, metrics: Sequence[str]) -> list[str]:
    values = leaderboard.loc[method]
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


def make_metric_table(leaderboard: pd.DataFrame, metric: str) -> TextTable:
    """List every statistic of one metric."""
    rows = [
        [
            str(method),
            *(format_number(metric, values[f"{metric}_{s}"]) for s in STATISTICS[:-1]),
            format_p_value(values[f"{metric}_p"]),
        ]
        for method, values in leaderboard.iterrows()
    ]
    return [["method", *STATISTIC_HEADERS], *rows]


def make_footnote(leaderboard: pd.DataFrame) -> str:
    """Explain the columns of the tables."""
    reference = leaderboard.attrs.get("reference") or tables.IDENTITY
    return (
        f"{leaderboard['cases'].iloc[0]} cases, the same for all. "
        "Rank: Learn2Reg's score, 0.1 to 1. Standard deviations divide by n. "
        "Worst 30 %: the 30th percentile of Dice, the 70th where less is better. "
        "95 %: bootstrap interval of the mean. "
        f"p: Wilcoxon's signed-rank test against {reference}, after Holm. Dice30: the 30 % of "
        "structures that overlapped least before registration."
    )


def make_tables(leaderboard: pd.DataFrame) -> dict[str, TextTable]:
    """Return all tables of a leaderboard by title."""
    by_metric = {
        format_header(m): make_metric_table(leaderboard, m) for m in list_metrics(leaderboard)
    }
    return {"All": make_overview_table(leaderboard)} | by_metric


def to_markdown(leaderboard: pd.DataFrame) -> str:
    """Format all tables as Markdown."""
    parts = [
        f"## {title}\n\n{tables.to_markdown(t)}" for title, t in make_tables(leaderboard).items()
    ]
    return f"# Leaderboard\n\n{make_footnote(leaderboard)}\n\n" + "\n".join(parts)


def to_latex(leaderboard: pd.DataFrame) -> str:
    """Format all tables as LaTeX, for the package booktabs."""
    parts = [f"% {title}\n{tables.to_latex(t)}" for title, t in make_tables(leaderboard).items()]
    return f"% {make_footnote(leaderboard)}\n\n" + "\n".join(parts)


def to_html(leaderboard: pd.DataFrame) -> str:
    """Format all tables as one HTML file that needs no other file."""
    parts = "".join(
        f"<h2>{html.escape(title)}</h2>\n{tables.to_html(t)}\n"
        for title, t in make_tables(leaderboard).items()
    )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>\n'
        f"<style>{STYLE}</style>\n<h1>Leaderboard</h1>\n"
        f"<p>{html.escape(make_footnote(leaderboard))}</p>\n{parts}</html>\n"
    )


FORMATTERS: dict[str, Callable[[pd.DataFrame], str]] = {
    "csv": lambda leaderboard: leaderboard.to_csv(),
    "md": to_markdown,
    "tex": to_latex,
    "html": to_html,
}


def write_leaderboard(leaderboard: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write ``leaderboard.csv``, ``.md``, ``.tex`` and ``.html``; return their paths."""
    paths = {Path(folder) / f"leaderboard.{ending}": form for ending, form in FORMATTERS.items()}
    for path, format_leaderboard in paths.items():
        write_text(path, format_leaderboard(leaderboard))
    return list(paths)
