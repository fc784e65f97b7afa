"""Scores of an unrolled model against the number of its iterations."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from regnet_lab.report.energy import TITLES
from regnet_lab.report.lines import lines

SCORES = {  # what tells how good an answer is, the best witness first
    "dice": "Dice",
    "tre_mm": "TRE (mm)",
    "epe_vox": "EPE (voxels)",
    "rmse": "RMSE",
}
BESIDE = {"energy": TITLES["energy"], "folds_percent": "folds (%)"}


def witness(frame: pd.DataFrame, ending: str = "") -> str:
    """The first of :data:`SCORES` that a table has, as ``<score><ending>``."""
    known = [name for name in SCORES if f"{name}{ending}" in frame]
    return known[0] if known else ""


def step_curve(rows: Sequence[dict[str, Any]], model: str) -> pd.DataFrame:
    """Means over cases of every number, and deviations as ``<number>_std``, by ``iterations``."""
    frame = pd.DataFrame(rows)
    groups = frame[[name for name in frame if "/" not in name]].groupby("iterations")
    means = groups.mean(numeric_only=True)
    spread = groups.std(ddof=0, numeric_only=True).add_suffix("_std")
    return means.join(spread).reset_index().assign(model=model)


def step_figure(curve: pd.DataFrame) -> Figure:
    """The first score known, the energy and the folds against the iterations, a line a model."""
    shown = {name: SCORES[name] for name in [witness(curve)] if name}
    shown |= {name: title for name, title in BESIDE.items() if name in curve}
    bare = curve[[name for name in curve if not name.endswith("_std")]]
    return lines(bare, "iterations", shown, "model")
