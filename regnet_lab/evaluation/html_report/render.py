"""Evaluation folders as one HTML file that needs no network:
``python -m regnet_lab.evaluation.html_report.render FOLDER... [out=report.html]``.

The leaderboard and all scores in tables that sort, the cases kept in ``gallery/`` with sliders
through their slices, boxes of every label, training curves and configurations.
"""

import base64
import io
import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from regnet_lab.errors import UserError
from regnet_lab.evaluation import leaderboard_tables, per_label, per_label_plots
from regnet_lab.evaluation.html_report.volumes import MOST, case_content
from regnet_lab.evaluation.leaderboard import RANKED, board
from regnet_lab.evaluation.results import Evaluation, Place, compared, find, told_apart
from regnet_lab.metrics import tables
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization.curves import curves

RANKS = ("best", "median", "worst")
PARTS = ("page.html", "page.css", "page.js")
MONITORS = ("val/dice", "val/tre_mm", "val/loss")
BY_LABEL = ("dice", "hd95_mm")


def judged(folders: Sequence[Place]) -> list[Evaluation]:
    """What all folders have judged, their methods named apart.

    Raises:
        UserError: There is no evaluation in a folder.
    """
    return told_apart([evaluation for folder in folders for evaluation in find(folder)])


def text_of(value: object) -> str:
    """A cell: numbers with four digits, nothing where there is none."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return str(value)


def table(title: str, frame: pd.DataFrame) -> dict[str, Any]:
    """A frame as text."""
    rows = [[text_of(value) for value in row] for row in frame.itertuples(index=False)]
    return {"title": title, "columns": [tables.header(name) for name in frame], "rows": rows}


def ranking(evaluations: Sequence[Evaluation], cases: pd.DataFrame) -> list[dict[str, Any]]:
    """The leaderboard and its statistics; of evaluations that cannot be compared their means."""
    try:
        ranked = board(compared(evaluations))
    except UserError:
        return [text_table("Summary", tables.grid(tables.summary(cases.to_dict("records"))))]
    told = [m for m in leaderboard_tables.metrics(ranked) if m in RANKED]
    return [
        text_table("Leaderboard", leaderboard_tables.overview(ranked))
        | {"note": leaderboard_tables.note(ranked)},
        *(text_table(tables.header(m), leaderboard_tables.details(ranked, m)) for m in told),
    ]


def text_table(title: str, grid: leaderboard_tables.Grid) -> dict[str, Any]:
    """Rows of text, the header first."""
    return {"title": title, "columns": grid[0], "rows": grid[1:]}


def picture(name: str, figure: Figure) -> dict[str, str]:
    """A figure as PNG in base64."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=110)
    return {"name": name, "png": base64.b64encode(whole.getvalue()).decode("ascii")}


def label_boxes(folders: Sequence[Path]) -> list[dict[str, str]]:
    """Boxes by label of each metric that all folders have, if they judge the same cases."""
    drawn = []
    for metric in BY_LABEL:
        try:
            found = per_label.by_structure(per_label.scores(folders, metric))
        except UserError:
            continue
        if len(found):
            drawn.append(picture(f"{metric} by label", per_label_plots.boxes(found, metric)))
    return drawn


def run_of(folder: Path) -> Path | None:
    """The run that a folder of its evaluations belongs to."""
    found = [parent for parent in folder.resolve().parents if (parent / "config.yaml").is_file()]
    return found[0] if found else None


def training_curves(runs: Sequence[Path]) -> list[dict[str, str]]:
    """A picture of each number that every run logged in training."""
    drawn = []
    for name in MONITORS if runs else ():
        try:
            drawn.append(picture(name, curves([str(run) for run in runs], name)))
        except UserError:
            continue
    return drawn


def content(places: Sequence[Place], most: int = MOST) -> dict[str, Any]:
    """All that the page shows.

    Raises:
        UserError: There is no evaluation in a folder, or a file of its gallery is damaged.
    """
    evaluations = judged(places)
    cases = pd.concat([e.cases for e in evaluations]).drop_duplicates(["case", "method"])
    folders = [e.folder for e in evaluations]
    runs = list(dict.fromkeys(run for folder in folders if (run := run_of(folder))))
    kept = [(e, e.folder / "gallery" / f"{rank}.npz") for e in evaluations for rank in RANKS]
    pictures = {"By label": label_boxes(folders), "Training": training_curves(runs)}
    texts = [(run, run / name) for run in runs for name in ("config.yaml", "environment.json")]
    return {
        "tables": [*ranking(evaluations, cases), table("All cases", cases)],
        "cases": [
            case_content(path, most, e.about.get("method")) for e, path in kept if path.is_file()
        ],
        "figures": [{"title": t, "pictures": drawn} for t, drawn in pictures.items() if drawn],
        "texts": [
            {"title": f"{run.name}: {path.name}", "text": path.read_text(encoding="utf-8")}
            for run, path in texts
            if path.is_file()
        ],
    }


def page(shown: dict[str, Any]) -> str:
    """The HTML file, with style, script and content inside."""
    parts = {name: (files(__package__) / "page" / name).read_text("utf-8") for name in PARTS}
    plain = json.dumps(shown, allow_nan=False).replace("<", "\\u003c")
    inside = {"style": parts["page.css"], "script": parts["page.js"], "content": plain}
    html = parts["page.html"]
    for name, text in inside.items():
        html = html.replace(f"/* {name} */", text)
    return html


def main() -> None:
    """Write what the command line asks for."""
    out, folders = "report.html", []
    for argument in sys.argv[1:]:
        if argument.startswith("out="):
            out = argument.removeprefix("out=")
        else:
            folders.append(argument)
    if not folders:
        sys.exit(
            "usage: python -m regnet_lab.evaluation.html_report.render <evaluation folder> [<another> ...] "
            "[out=report.html]"
        )
    try:
        write_text(out, page(content(folders)))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
