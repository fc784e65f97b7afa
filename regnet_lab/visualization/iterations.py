"""What happens from field to field of a model that returns several, coarse to fine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.ops.similarity import mean_squares
from regnet_lab.types import Pair
from regnet_lab.visualization.curves import lines

Measure = Callable[[Tensor, Tensor], Tensor]

TITLES = {
    "energy": "image energy on the fixed grid",
    "level_energy": "image energy on its own level",
    "roughness": "mean |du/dx|² on the fixed grid",
    "learned_step": "learned step, RMS (voxels of its level)",
}


def own_energy(model: nn.Module) -> Measure:
    """The image energy that a model, or one inside it, descends; else the mean of squares."""
    return next((m.energy for m in model.modules() if hasattr(m, "energy")), mean_squares)  # type: ignore[return-value]


@contextmanager
def learned_steps(model: nn.Module) -> Iterator[list[float]]:
    """Root mean squares, over voxels, of what each call of a module named ``regulariser`` gave.

    The list grows as the model runs; empty it after every pass.
    """
    found: list[float] = []

    def note(module: nn.Module, given: Any, step: Tensor) -> None:
        if step.ndim:
            found.append(float(step.detach().float().square().sum(1).mean().sqrt()))

    named = [m for name, m in model.named_modules() if name.split(".")[-1] == "regulariser"]
    handles = [module.register_forward_hook(note) for module in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def energies(pair: Pair, fields: Sequence[Tensor], measure: Measure) -> list[dict[str, Any]]:
    """One row for the pair as it is, ``iteration`` 0, and one for every field.

    ``level_energy`` is that of the images on the field's own grid, ``energy`` that of the field
    carried to the fixed grid, which compares between levels, and ``roughness`` the mean over
    its voxels of the squared Frobenius norm of its derivative; means over the batch.
    """
    rows = [
        _row(pair, torch.zeros_like(fields[0]), measure),
        *(_row(pair, u, measure) for u in fields),
    ]
    return [{"iteration": k, **row} for k, row in enumerate(rows)]


@torch.no_grad()
def _row(pair: Pair, u: Tensor, measure: Measure) -> dict[str, Any]:
    fixed, moving = pair["fixed"], pair["moving"]
    f, m = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
    whole = ops.resize_field(u, fixed.shape[2:])
    slope = ops.gradient(whole)
    return {
        "level": " x ".join(map(str, u.shape[2:])),
        "level_energy": float(measure(f, ops.warp(m, u)).mean()),
        "energy": float(measure(fixed, ops.warp(moving, whole)).mean()),
        "roughness": float(slope.square().sum((1, 2)).mean()),
    }


def with_learned_steps(rows: list[dict[str, Any]], steps: Sequence[float]) -> list[dict[str, Any]]:
    """Rows of :func:`energies` with the ``learned_step`` that led to each, if there were any.

    A model that ran several times, such as one for each chunk of slices, gives the mean.
    """
    count = len(rows) - 1
    if not steps or len(steps) % count:
        return rows
    means = np.reshape(steps, (-1, count)).mean(0)
    after = [row | {"learned_step": float(s)} for row, s in zip(rows[1:], means, strict=True)]
    return [rows[0], *after]


def mean_curve(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Mean over cases of every number, by ``method`` and ``iteration``."""
    frame = pd.DataFrame(rows)
    keys = ["method", "iteration"]
    level = frame.groupby(keys, sort=False)["level"].first()
    means = frame.groupby(keys, sort=False).mean(numeric_only=True)
    return means.assign(cases=frame.groupby(keys).size()).join(level).reset_index()


def figure(curve: pd.DataFrame) -> Figure:
    """The curves of :func:`mean_curve` against the iteration, one axis for each number."""
    shown = {name: title for name, title in TITLES.items() if name in curve}
    return lines(curve, "iteration", shown, "method")


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
