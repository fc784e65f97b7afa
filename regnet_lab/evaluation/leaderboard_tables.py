"""A leaderboard for people and for papers: CSV, Markdown, LaTeX, HTML."""

import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from regnet_lab.evaluation.leaderboard import STATISTICS
from regnet_lab.metrics.tables import IDENTITY, header, known, markdown_grid, split_unit
from regnet_lab.utils.atomic_io import write_text

Grid = list[list[str]]  # rows of text, the header first

COLUMNS = {
    "mean": "mean",
    "sd": "sd",
    "median": "median",
    "worst30": "worst 30 %",
    "low": "95 % from",
    "high": "to",
    "p": "p",
}
LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "<": "$<$",
    "~": r"\~{}",
}


def number(metric: str, value: float) -> str:
    """A value with the decimals its metric deserves, a dash where there is none."""
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    name, _ = split_unit(metric)
    found = known(name)
    return f"{value:.{found[1]}f}" if found else f"{value:.4g}"


def p_value(p: float) -> str:
    """``0.013``, ``< 0.001``, or a dash."""
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def metrics(board: pd.DataFrame) -> list[str]:
    """The metrics of a leaderboard, in its order."""
    return [str(c).removesuffix("_mean") for c in board if str(c).endswith("_mean")]


def overview(board: pd.DataFrame) -> Grid:
    """Rank, mean ± standard deviation of every metric, and what each method costs."""
    names = metrics(board)
    head = ["method", "rank", *map(header, names), "seconds", "memory (MB)", "parameters", "on"]

    def row(method: str) -> list[str]:
        values = board.loc[method]
        cells = [
            f"{number(m, values[f'{m}_mean'])} ± {number(m, values[f'{m}_sd'])}"
            if not math.isnan(values[f"{m}_mean"])
            else "-"
            for m in names
        ]
        parameters = values.get("parameters")
        size = "-" if pd.isna(parameters) else f"{parameters:,.0f}"
        cost = [number("seconds", values.get("seconds")), number("peak_mb", values.get("peak_mb"))]
        device = values.get("device")
        on = device if isinstance(device, str) else "-"
        return [method, number("rank", values["rank"]), *cells, *cost, size, on]

    return [head, *(row(str(method)) for method in board.index)]


def details(board: pd.DataFrame, metric: str) -> Grid:
    """Every statistic of one metric."""
    rows = [
        [
            str(method),
            *(number(metric, values[f"{metric}_{s}"]) for s in STATISTICS[:-1]),
            p_value(values[f"{metric}_p"]),
        ]
        for method, values in board.iterrows()
    ]
    return [["method", *(COLUMNS[s] for s in STATISTICS)], *rows]


def note(board: pd.DataFrame) -> str:
    """How to read the tables."""
    return (
        f"{board['cases'].iloc[0]} cases, the same for all. Rank: Learn2Reg's score, 0.1 to 1. "
        "Standard deviations divide by n. Worst 30 %: the 30th percentile of Dice, the 70th where "
        "less is better. 95 %: bootstrap interval of the mean. "
        f"p: Wilcoxon's signed-rank test against {board.attrs.get('reference') or IDENTITY}, after "
        "Holm. Dice30: the 30 % of structures that overlapped least before registration."
    )


def grids(board: pd.DataFrame) -> dict[str, Grid]:
    """All tables of a leaderboard by their titles."""
    return {"All": overview(board)} | {header(m): details(board, m) for m in metrics(board)}


def markdown(board: pd.DataFrame) -> str:
    """The tables as Markdown."""
    parts = [f"## {title}\n\n{markdown_grid(grid)}" for title, grid in grids(board).items()]
    return f"# Leaderboard\n\n{note(board)}\n\n" + "\n".join(parts)


def latex(board: pd.DataFrame) -> str:
    """The tables for a paper, for the package booktabs."""

    def text(cell: str) -> str:
        return "".join(LATEX.get(character, character) for character in cell)

    def table(title: str, grid: Grid) -> str:
        first, *rows = [" & ".join(map(text, row)) + r" \\" for row in grid]
        columns = "l" + "r" * (len(grid[0]) - 1)
        lines = [rf"% {title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", first, r"\midrule"]
        return "\n".join([*lines, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"

    parts = [table(title, grid) for title, grid in grids(board).items()]
    return f"% {note(board)}\n\n" + "\n".join(parts)


def page(board: pd.DataFrame) -> str:
    """The tables as one HTML file that needs nothing else."""

    def rows(grid: Grid) -> str:
        first, *rest = grid
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rest]
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in first)
        return f"<tr>{head}</tr>\n" + "".join(f"<tr>{row}</tr>\n" for row in cells)

    tables = "".join(
        f"<h2>{html.escape(title)}</h2>\n<table>\n{rows(grid)}</table>\n"
        for title, grid in grids(board).items()
    )
    style = (
        "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>\n'
        f"<style>{style}</style>\n<h1>Leaderboard</h1>\n<p>{html.escape(note(board))}</p>\n"
        f"{tables}</html>\n"
    )


FORMS: dict[str, Callable[[pd.DataFrame], str]] = {
    "csv": lambda board: board.to_csv(),
    "md": markdown,
    "tex": latex,
    "html": page,
}


def write(board: pd.DataFrame, folder: str | Path) -> Sequence[Path]:
    """``leaderboard.csv``, ``.md``, ``.tex`` and ``.html``.

    Raises:
        UserError: The folder cannot be written to.
    """
    paths = {Path(folder) / f"leaderboard.{ending}": form for ending, form in FORMS.items()}
    for path, form in paths.items():
        write_text(path, form(board))
    return list(paths)
