"""Compare alignment with regularity over the runs of a sweep, such as of a smoothness weight."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from regnet_lab.config.run_dir import load_run_config
from regnet_lab.errors import UserError
from regnet_lab.evaluation.comparison import check_settings
from regnet_lab.evaluation.results import Evaluation, EvaluationSource, find_evaluations
from regnet_lab.metrics.tables import IDENTITY, format_header
from regnet_lab.utils.atomic_io import write_figure, write_text

ALIGNMENT_METRICS = ("dice", "tre_mm", "epe_vox", "rmse")  # the first that all have is shown
REGULARITY_METRICS = ("sdlogj", "folds_percent")


def read_tradeoff_point(evaluation: Evaluation, key: str) -> dict[str, object]:
    """Return an evaluated run as one row: method, value of ``key``, cases, mean of each metric.

    ``key`` is a dotted key of the run's configuration, such as ``loss.folding.weight``.
    """
    if evaluation.run is None:
        raise UserError(
            f"{evaluation.folder}: the configuration of its run ({evaluation.origin}) is missing; "
            "give evaluations of training runs."
        )
    config = load_run_config(str(evaluation.run))
    value = OmegaConf.select(config, key)
    if not isinstance(value, int | float):
        raise UserError(
            f"{evaluation.run}: {key} is no number in its configuration; give the key that the "
            "sweep varied."
        )
    if len(evaluation.methods) > 1:
        raise UserError(
            f"{evaluation.folder}: has several methods ({', '.join(evaluation.methods)}); give an "
            "evaluation with task=score."
        )
    cases = evaluation.cases[evaluation.cases["method"] != IDENTITY]
    means = cases.select_dtypes("number").mean()
    return {"method": config.module.name, key: float(value), "cases": len(cases), **means}


def read_tradeoff_table(sources: Sequence[EvaluationSource], key: str) -> pd.DataFrame:
    """Read one row per evaluation, sorted by method and the value of ``key``."""
    evaluations = [e for source in sources for e in find_evaluations(source)]
    check_settings(evaluations)
    rows = [read_tradeoff_point(e, key) for e in evaluations]
    return pd.DataFrame(rows).sort_values(["method", key], ignore_index=True)


def draw_tradeoff(table: pd.DataFrame, key: str) -> Figure:
    """Draw alignment against SDlogJ and folds, and below alignment and folds against ``key``.

    There is a line for each method of :func:`read_tradeoff_table`, marked with the values of
    ``key``.
    """
    complete = set(table.columns[table.notna().all()])
    alignment = next((name for name in ALIGNMENT_METRICS if name in complete), None)
    if alignment is None or not complete.issuperset(REGULARITY_METRICS):
        raise UserError(
            "The evaluations have no common metrics: needed are one of "
            f"{', '.join(ALIGNMENT_METRICS)} and {' and '.join(REGULARITY_METRICS)}; evaluate all "
            "of them on the same data."
        )
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    for x, panel in zip(REGULARITY_METRICS, upper, strict=True):
        _draw_lines(panel, table, x, alignment)
        for row in table.to_dict("records"):
            panel.annotate(f"{row[key]:g}", (row[x], row[alignment]), fontsize=7)
    positive = table[key][table[key] > 0]
    for y, panel in zip((alignment, "folds_percent"), lower, strict=True):
        _draw_lines(panel, table, key, y)
        if len(positive):
            panel.set_xscale("symlog", linthresh=positive.min())
    upper[0].legend()
    return figure


def _draw_lines(panel: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    for method, rows in table.groupby("method"):
        panel.plot(rows[x], rows[y], marker="o", label=method)
    panel.set(xlabel=format_header(x), ylabel=format_header(y))
    panel.grid(alpha=0.3)


def write_tradeoff(
    sources: Sequence[EvaluationSource], key: str, figure_path: Path
) -> pd.DataFrame:
    """Write the figure and, beside it, the table as CSV; return the table."""
    table = read_tradeoff_table(sources, key)
    write_figure(figure_path, draw_tradeoff(table, key), dpi=120)
    write_text(figure_path.with_suffix(".csv"), table.to_csv(index=False))
    return table
