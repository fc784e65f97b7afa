"""Describe the known displacements of a data set: a table and maps of their magnitude."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_figure, write_text

log = logging.getLogger(__name__)


def compute_wavelength(u: NDArray[np.floating], spacing: Sequence[float]) -> float:
    """Compute the wavelength of a wave with the same ratio of slope to amplitude as a field.

    It is 2 pi sqrt(sum |u - mean|^2 / sum |du/dx|^2) in mm, as are u (D, *spatial) and the spacing;
    NaN for a constant field.
    """
    slope = sum(
        float((np.gradient(component, mm, axis=axis) ** 2).sum())
        for component in u
        for axis, mm in enumerate(spacing)
    )
    amplitude = float(((u - u.mean(tuple(range(1, u.ndim)), keepdims=True)) ** 2).sum())
    return 2 * np.pi * np.sqrt(amplitude / slope) if slope > 0 else np.nan


def compute_displacement_stats(
    u: Tensor, spacing: Tensor, thresholds: Sequence[float]
) -> dict[str, float]:
    """Compute statistics of a known displacement.

    Args:
        u: (D, *spatial) in voxels.
        spacing: (D,) millimetres per voxel.
        thresholds: Limits of classes of magnitude, mm.

    Returns:
        Largest component and mean magnitude (mm), wavelength along an axis (mm), voxels in each
        class of magnitude (percent), smallest Jacobian determinant and folded voxels (percent).
    """
    ndim = len(spacing)
    u_mm = (u * spacing.view(-1, *[1] * ndim)).double()
    magnitude = u_mm.square().sum(0).sqrt()
    classes = torch.bucketize(magnitude, torch.tensor(thresholds).double(), right=True)
    counts = torch.bincount(classes.flatten(), minlength=len(thresholds) + 1)
    determinant = ops.jacobian_determinant(u[None])
    class_names = [f"below_{t:g}_mm_percent" for t in thresholds] + ["above_percent"]
    percent = (100 * counts / counts.sum()).tolist()
    return {
        "largest_mm": float(u_mm.abs().max()),
        "mean_mm": float(magnitude.mean()),
        "wavelength_mm": compute_wavelength(u_mm.numpy(), spacing.tolist()) * ndim**0.5,
        **dict(zip(class_names, percent, strict=True)),
        "least_determinant": float(determinant.min()),
        "folds_percent": float(100 * (determinant <= 0).double().mean()),
    }


def draw_magnitude_maps(pairs: Sequence[Pair]) -> Figure:
    """Draw fixed image and magnitude of the displacement in the middle of the second axis."""
    columns = min(len(pairs), 4)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    for pair, image_panel, map_panel in zip(pairs, panels[::2], panels[1::2], strict=False):
        u = pair["displacement"][0] * pair["spacing"][0].view(-1, *[1] * pair["spacing"].shape[1])
        image, magnitude = (
            volume[:, volume.shape[1] // 2] if volume.ndim == 3 else volume
            for volume in (pair["fixed"][0, 0], u.square().sum(0).sqrt())
        )
        image_panel.imshow(image.T, cmap="gray", origin="lower")
        color_map = map_panel.imshow(magnitude.T, cmap="jet", origin="lower", vmin=0)
        figure.colorbar(color_map, ax=map_panel, label="mm")
        image_panel.set_title(pair["name"][0], fontsize=6)
    return figure


class DisplacementStatsTask:
    """Describe the known displacement of every pair.

    Args:
        folder: Folder for ``displacement_stats.csv`` and ``displacement_stats.png``.
        displacement_thresholds: Limits of the classes of magnitude, mm.
        num_pictures: Number of pairs in the figure, from the first to the last at equal distances.
    """

    def __init__(
        self, folder: str, displacement_thresholds: Sequence[float], num_pictures: int
    ) -> None:
        self.folder, self.num_pictures = Path(folder), num_pictures
        self.displacement_thresholds = list(displacement_thresholds)

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Write the table and the figure."""
        rows, drawn_pairs = [], []
        drawn = {round(x) for x in np.linspace(0, len(data) - 1, self.num_pictures)}
        for index, pair in enumerate(data):
            name = pair["name"][0]
            if "displacement" not in pair:
                raise UserError(f"{name}: its displacement is unknown; choose other data.")
            u, spacing = pair["displacement"][0], pair["spacing"][0]
            statistics = compute_displacement_stats(u, spacing, self.displacement_thresholds)
            rows.append({"case": name, **statistics})
            drawn_pairs += [pair] if index in drawn else []
        table = pd.DataFrame(rows)
        write_text(self.folder / "displacement_stats.csv", table.to_csv(index=False))
        write_figure(self.folder / "displacement_stats.png", draw_magnitude_maps(drawn_pairs))
        summary = table.drop(columns="case").describe().loc[["mean", "min", "max"]]
        for line in str(summary).splitlines():
            log.info("%s", line)
