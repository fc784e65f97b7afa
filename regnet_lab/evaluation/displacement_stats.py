"""What the known displacements of a data set are like: a table, and pictures as heat maps."""

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

log = logging.getLogger(__name__)


def wavelength(u: NDArray[np.floating], spacing: Sequence[float]) -> float:
    """2 pi sqrt(sum |u - mean|^2 / sum |du/dx|^2) of a field (D, *shape) in mm: that of a wave
    with the same ratio of slope to size; NaN of a constant.
    """
    slope = sum(
        float((np.gradient(component, mm, axis=axis) ** 2).sum())
        for component in u
        for axis, mm in enumerate(spacing)
    )
    size = float(((u - u.mean(tuple(range(1, u.ndim)), keepdims=True)) ** 2).sum())
    return 2 * np.pi * np.sqrt(size / slope) if slope > 0 else np.nan


def statistics(u: Tensor, spacing: Tensor, thresholds: Sequence[float]) -> dict[str, float]:
    """Of a known displacement (D, *shape) in voxels: its largest component and mean length (mm),
    wavelength along an axis (mm), share of voxels in each class of length (percent), smallest
    determinant and folds (percent of voxels).
    """
    ndim = len(spacing)
    millimetres = (u * spacing.view(-1, *[1] * ndim)).double()
    length = millimetres.square().sum(0).sqrt()
    counts = torch.bincount(
        torch.bucketize(length, torch.tensor(thresholds).double(), right=True).flatten(),
        minlength=len(thresholds) + 1,
    )
    determinant = ops.jacobian_determinant(u[None])
    names = [f"below_{t:g}_mm_percent" for t in thresholds] + ["above_percent"]
    shares = (100 * counts / counts.sum()).tolist()
    return {
        "largest_mm": float(millimetres.abs().max()),
        "mean_mm": float(length.mean()),
        "wavelength_mm": wavelength(millimetres.numpy(), spacing.tolist()) * ndim**0.5,
        **dict(zip(names, shares, strict=True)),
        "least_determinant": float(determinant.min()),
        "folds_percent": float(100 * (determinant <= 0).double().mean()),
    }


def heat_maps(pairs: Sequence[Pair], path: Path) -> None:
    """The deformed image and the length of its displacement in the middle of the second axis."""
    columns = min(len(pairs), 4)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for pair, image, heat in zip(pairs, axes[::2], axes[1::2], strict=False):
        u = pair["displacement"][0] * pair["spacing"][0].view(-1, *[1] * pair["spacing"].shape[1])
        planes = [pair["fixed"][0, 0], u.square().sum(0).sqrt()]
        planes = [p[:, p.shape[1] // 2] if p.ndim == 3 else p for p in planes]
        image.imshow(planes[0].T, cmap="gray", origin="lower")
        shown = heat.imshow(planes[1].T, cmap="jet", origin="lower", vmin=0)
        figure.colorbar(shown, ax=heat, label="mm")
        image.set_title(pair["name"][0], fontsize=6)
    aside = path.with_name(f"part-{path.name}")
    figure.savefig(aside, dpi=100)
    aside.replace(path)


class Fields:
    """Describe the known displacement of every pair.

    Args:
        folder: Where ``fields.csv`` and ``fields.png`` are written.
        thresholds: Of the classes of length, mm.
        pictures: Pairs in the picture, from the first to the last at equal distances.
    """

    def __init__(self, folder: str, thresholds: Sequence[float], pictures: int) -> None:
        self.folder, self.thresholds, self.pictures = Path(folder), list(thresholds), pictures

    def run(self, trainer: Trainer, module: RegistrationModule, pairs: DataLoader[Pair]) -> None:
        """Write the table and the picture.

        Raises:
            UserError: A pair's displacement is unknown.
        """
        rows, shown = [], []
        places = {round(x) for x in np.linspace(0, len(pairs) - 1, self.pictures)}
        for number, pair in enumerate(pairs):
            if "displacement" not in pair:
                raise UserError(
                    f"{pair['name'][0]}: its displacement is unknown; choose other data."
                )
            numbers = statistics(pair["displacement"][0], pair["spacing"][0], self.thresholds)
            rows.append({"case": pair["name"][0], **numbers})
            shown += [pair] if number in places else []
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / "part-fields.csv"
        table = pd.DataFrame(rows)
        table.to_csv(aside, index=False)
        aside.replace(self.folder / "fields.csv")
        heat_maps(shown, self.folder / "fields.png")
        log.info("\n%s", table.drop(columns="case").describe().loc[["mean", "min", "max"]])
