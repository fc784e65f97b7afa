"""Curves over the iterations of a model that returns a field for each, coarse to fine.

First the energy curve of one number of iterations, then the sweep over numbers of iterations.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models import GraDIRN
from regnet_lab.ops.similarity import mean_squares
from regnet_lab.types import Pair
from regnet_lab.visualization.curves import plot_metrics

EnergyFunction = Callable[[Tensor, Tensor], Tensor]  # (fixed, warped) to one number per case

ENERGY_TITLES = {
    "energy": "image energy on the fixed grid",
    "level_energy": "image energy on its own level",
    "roughness": "mean |du/dx|² on the fixed grid",
    "learned_step": "learned step, RMS (voxels of its level)",
}
PRIMARY_METRICS = {  # metrics of the quality of a registration, the most meaningful first
    "dice": "Dice",
    "tre_mm": "TRE (mm)",
    "epe_vox": "EPE (voxels)",
    "rmse": "RMSE",
}
SECONDARY_METRICS = {"energy": ENERGY_TITLES["energy"], "folds_percent": "folds (%)"}


def find_primary_metric(frame: pd.DataFrame, suffix: str = "") -> str:
    """Return the first of ``PRIMARY_METRICS`` whose ``<metric><suffix>`` is in a table; else "".

    >>> find_primary_metric(pd.DataFrame({"rmse_mean": [0.1], "dice_mean": [0.8]}), "_mean")
    'dice'
    """
    return next((name for name in PRIMARY_METRICS if f"{name}{suffix}" in frame), "")


def find_image_energy(model: nn.Module) -> EnergyFunction:
    """Return the image energy that a GraDIRN, possibly wrapped, descends; else the mean square."""
    return next((m.energy for m in model.modules() if isinstance(m, GraDIRN)), mean_squares)


@contextmanager
def record_learned_steps(model: nn.Module) -> Iterator[list[float]]:
    """Record the RMS length, over voxels, of the output of every module named ``regulariser``.

    The list grows as the model runs; empty it after every pass.
    """
    steps: list[float] = []

    def record(module: nn.Module, inputs: Any, step: Tensor) -> None:
        if step.ndim:
            steps.append(float(step.detach().float().square().sum(1).mean().sqrt()))

    regularisers = [m for name, m in model.named_modules() if name.split(".")[-1] == "regulariser"]
    with ExitStack() as hooks:
        for module in regularisers:
            hooks.enter_context(module.register_forward_hook(record))
        yield steps


@torch.no_grad()
def compute_energy_curve(
    pair: Pair, fields: Sequence[Tensor], energy: EnergyFunction
) -> list[dict[str, Any]]:
    """Compute a row for zero displacement, ``iteration`` 0, and a row for every field.

    ``level_energy`` is measured on the field's own grid; ``energy``, on the fixed grid with the
    resized field, compares between levels; ``roughness`` is the mean over the fixed grid of the
    squared Frobenius norm of du/dx.  All are means over the batch.
    """
    fixed, moving, rows = pair["fixed"], pair["moving"], []
    for k, u in enumerate([torch.zeros_like(fields[0]), *fields]):
        level_fixed, level_moving = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
        fine_u = ops.resize_field(u, fixed.shape[2:])
        row = {
            "iteration": k,
            "level": " x ".join(map(str, u.shape[2:])),
            "level_energy": float(energy(level_fixed, ops.warp(level_moving, u)).mean()),
            "energy": float(energy(fixed, ops.warp(moving, fine_u)).mean()),
            "roughness": float(ops.gradient(fine_u).square().sum((1, 2)).mean()),
        }
        rows.append(row)
    return rows


def add_learned_steps(rows: list[dict[str, Any]], steps: Sequence[float]) -> list[dict[str, Any]]:
    """Return rows of :func:`compute_energy_curve` with the ``learned_step`` that led to each.

    A model that ran several times, such as once per chunk of slices, gives the mean.  Steps that
    do not match the number of fields are ignored.
    """
    count = len(rows) - 1
    if not steps or len(steps) % count:
        return rows
    means = np.reshape(steps, (-1, count)).mean(0)
    updated = [row | {"learned_step": float(s)} for row, s in zip(rows[1:], means, strict=True)]
    return [rows[0], *updated]


def average_energy_curves(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Average every number over cases, by ``method`` and ``iteration``."""
    groups = pd.DataFrame(rows).groupby(["method", "iteration"], sort=False)
    means = groups.mean(numeric_only=True).assign(cases=groups.size())
    return means.join(groups["level"].first()).reset_index()


def plot_energy_curves(curve: pd.DataFrame) -> Figure:
    """Plot the table of :func:`average_energy_curves` against the iteration, a line per method."""
    titles = {name: title for name, title in ENERGY_TITLES.items() if name in curve}
    return plot_metrics(curve, "iteration", titles, "method")


def summarize_iteration_sweep(rows: Sequence[dict[str, Any]], model: str) -> pd.DataFrame:
    """Return means and standard deviations (``<name>_std``) over cases by ``iterations``."""
    frame = pd.DataFrame(rows)
    groups = frame[[name for name in frame if "/" not in name]].groupby("iterations")
    means = groups.mean(numeric_only=True)
    deviations = groups.std(ddof=0, numeric_only=True).add_suffix("_std")
    return means.join(deviations).reset_index().assign(model=model)


def plot_iteration_sweep(curve: pd.DataFrame) -> Figure:
    """Plot the primary metric, energy and folds against the iterations, a line per model."""
    metric = find_primary_metric(curve)
    titles = {metric: PRIMARY_METRICS[metric]} if metric else {}
    titles |= {name: title for name, title in SECONDARY_METRICS.items() if name in curve}
    means = curve[[name for name in curve if not name.endswith("_std")]]
    return plot_metrics(means, "iterations", titles, "model")
