"""What smoothness costs: alignment against regularity over the runs of a sweep.

``python -m regnet_lab.evaluation.tradeoff loss.folding.weight out.png EVALUATION...`` writes a
picture and, beside it, the numbers as CSV.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import IDENTITY, header
from regnet_lab.utils.atomic_io import write_text

ALIGNMENT = ("dice", "tre_mm", "epe_vox", "rmse")  # the first that all were judged by is shown
REGULARITY = ("sdlogj", "folds_percent")


def point(evaluation: str | Path, key: str) -> dict[str, object]:
    """An evaluated run as one row: method, the value of ``key``, cases, mean of every metric.

    Raises:
        UserError: The folder holds no finished evaluation of a run, the run is gone, or its
            configuration has no ``key``.
    """
    folder = Path(evaluation)
    paths = folder / "evaluation_config.yaml", folder / "cases.csv"
    if not all(path.is_file() for path in paths):
        raise UserError(f"{folder}: is no finished evaluation; give folders evaluate.py wrote.")
    path = Path(OmegaConf.load(paths[0]).run or "", "config.yaml")
    if not path.is_file():
        raise UserError(f"{folder}: judges no run, or one that was moved: {path} is not there.")
    run = OmegaConf.load(path)
    value = OmegaConf.select(run, key)
    if not isinstance(value, int | float):
        raise UserError(f"{path}: {key} is no number in it; name the key that the sweep varied.")
    cases = pd.read_csv(paths[1])
    cases = cases[cases["method"] != IDENTITY]
    means = cases.select_dtypes("number").mean()
    return {"method": run.module.name, key: float(value), "cases": len(cases), **means}


def points(evaluations: Sequence[str | Path], key: str) -> pd.DataFrame:
    """One row for each evaluation, by method and then by the value of ``key``."""
    return pd.DataFrame([point(e, key) for e in evaluations]).sort_values(
        ["method", key], ignore_index=True
    )


def regularity(table: pd.DataFrame, key: str) -> Figure:
    """Alignment against SDlogJ and against folds; below, alignment and folds against ``key``.

    One line for each method of :func:`points`, its points marked with the value of ``key``.

    Raises:
        UserError: The runs were not judged by a common measure of alignment, or of regularity.
    """
    known = set(table.columns[table.notna().all()])
    alignment = next((name for name in ALIGNMENT if name in known), None)
    if alignment is None or not known.issuperset(REGULARITY):
        raise UserError(
            f"The evaluations have no common measure: one of {', '.join(ALIGNMENT)} and "
            f"{' and '.join(REGULARITY)} are needed; evaluate all of them on the same data."
        )
    figure = Figure(figsize=(9, 7), layout="constrained")
    upper, lower = figure.subplots(2, 2)
    for x, panel in zip(REGULARITY, upper, strict=True):
        _lines(panel, table, x, alignment)
        for row in table.to_dict("records"):
            panel.annotate(f"{row[key]:g}", (row[x], row[alignment]), fontsize=7)
    steps = table[key][table[key] > 0]
    for y, panel in zip((alignment, "folds_percent"), lower, strict=True):
        _lines(panel, table, key, y)
        if len(steps):
            panel.set_xscale("symlog", linthresh=steps.min())
    upper[0].legend()
    return figure


def _lines(panel: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    for method, rows in table.groupby("method"):
        panel.plot(rows[x], rows[y], marker="o", label=method)
    panel.set(xlabel=header(x), ylabel=header(y))
    panel.grid(alpha=0.3)


def main() -> None:
    """Write the picture and the table which the command line asks for."""
    if len(sys.argv) < 4:
        sys.exit(
            "usage: python -m regnet_lab.evaluation.tradeoff <key> <picture> <evaluation> [...]"
        )
    key, picture, *evaluations = sys.argv[1:]
    try:
        table = points(evaluations, key)
        regularity(table, key).savefig(picture, dpi=120)
        write_text(Path(picture).with_suffix(".csv"), table.to_csv(index=False))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
