"""Render evaluations as one HTML file that needs no network.

It shows the leaderboard and all scores in sortable tables, the example cases in ``gallery/`` with
sliders through their slices, box plots by label, training curves and configurations.
"""

import base64
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from regnet_lab.errors import UserError
from regnet_lab.evaluation import leaderboard_tables, per_label, per_label_plots
from regnet_lab.evaluation.comparison import make_comparable
from regnet_lab.evaluation.html_report.volumes import MAX_VOXELS, make_case_content
from regnet_lab.evaluation.leaderboard import RANKED_METRICS, rank_evaluations
from regnet_lab.evaluation.results import Evaluation, EvaluationSource, read_evaluations
from regnet_lab.metrics import tables
from regnet_lab.training.callbacks.example_cases import RANKS
from regnet_lab.visualization.curves import plot_training_curves

PAGE_FILES = ("page.html", "page.css", "page.js")
TRAINING_METRICS = ("val/dice", "val/tre_mm", "val/loss")
LABEL_METRICS = ("dice", "hd95_mm")


def format_cell(value: object) -> str:
    """Format numbers with four significant digits, NaN as nothing."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return str(value)


def make_table(title: str, rows: tables.TextTable) -> dict[str, Any]:
    """Convert rows of text, the header first, to the content of a table."""
    return {"title": title, "columns": rows[0], "rows": rows[1:]}


def make_ranking_tables(
    evaluations: Sequence[Evaluation], cases: pd.DataFrame
) -> list[dict[str, Any]]:
    """Make the leaderboard and its statistics; only means if evaluations cannot be compared."""
    try:
        leaderboard = rank_evaluations(make_comparable(evaluations))
    except UserError:
        summary = tables.summarize(cases.to_dict("records"))
        return [make_table("Summary", tables.format_summary(summary))]
    overview = make_table("Leaderboard", leaderboard_tables.make_overview_table(leaderboard))
    metrics = [m for m in tables.list_metrics(leaderboard) if m in RANKED_METRICS]
    return [
        overview | {"note": leaderboard_tables.make_footnote(leaderboard)},
        *(
            make_table(
                tables.format_header(m), leaderboard_tables.make_metric_table(leaderboard, m)
            )
            for m in metrics
        ),
    ]


def encode_figure(name: str, figure: Figure) -> dict[str, str]:
    """Encode a figure as PNG in base64."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return {"name": name, "png": base64.b64encode(png.getvalue()).decode("ascii")}


def draw_label_boxes(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """Draw box plots by label of each metric that all evaluations of the same cases have."""
    figures = []
    for metric in LABEL_METRICS:
        with suppress(UserError):
            scores = per_label.collect_label_scores(evaluations, metric)
            if len(table := per_label.average_by_structure(scores)):
                figure = per_label_plots.draw_box_plots(table, metric)
                figures.append(encode_figure(f"{metric} by label", figure))
    return figures


def draw_training_curves(runs: Sequence[Path]) -> list[dict[str, str]]:
    """Draw the curve of each validation metric that every run logged."""
    figures = []
    for name in TRAINING_METRICS if runs else ():
        with suppress(UserError):
            figures.append(encode_figure(name, plot_training_curves(runs, name)))
    return figures


def collect_content(
    sources: Sequence[EvaluationSource], max_voxels: int = MAX_VOXELS
) -> dict[str, Any]:
    """Collect everything that the page shows.

    Args:
        sources: Evaluation folders or folders above them; ``name=folder`` names the method.
        max_voxels: Larger example cases are subsampled.
    """
    evaluations = read_evaluations(sources)
    cases = pd.concat([e.cases for e in evaluations]).drop_duplicates(["case", "method"])
    rows = [[*map(tables.format_header, cases)], *cases.map(format_cell).to_numpy().tolist()]
    runs = list(dict.fromkeys(e.run for e in evaluations if e.run))
    examples = [(e, e.folder / "gallery" / f"{rank}.npz") for e in evaluations for rank in RANKS]
    figures = {"By label": draw_label_boxes(evaluations), "Training": draw_training_curves(runs)}
    texts = [(run, run / name) for run in runs for name in ("config.yaml", "environment.json")]
    return {
        "tables": [*make_ranking_tables(evaluations, cases), make_table("All cases", rows)],
        "cases": [
            make_case_content(path, max_voxels, e.run_info.get("method"))
            for e, path in examples
            if path.is_file()
        ],
        "figures": [
            {"title": t, "pictures": pictures} for t, pictures in figures.items() if pictures
        ],
        "texts": [
            {"title": f"{run.name}: {path.name}", "text": path.read_text(encoding="utf-8")}
            for run, path in texts
            if path.is_file()
        ],
    }


def render_page(content: dict[str, Any]) -> str:
    """Render the HTML file, with style, script and content inside."""
    page = files(__package__) / "page"
    html, style, script = ((page / name).read_text("utf-8") for name in PAGE_FILES)
    encoded = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    for name, text in (("style", style), ("script", script), ("content", encoded)):
        html = html.replace(f"/* {name} */", text)
    return html
