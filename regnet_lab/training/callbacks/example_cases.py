"""What a report needs to show the best, the median and the worst judged case."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_bytes
from regnet_lab.utils.distributed import gathered

METRICS = {"dice": 1, "tre_mm": -1, "epe_vox": -1, "rmse": -1}  # the first one known; higher better
RANKS = ("best", "median", "worst")


class Gallery(EachCase):
    """Keep images and displacement of the best, the median and the worst case.

    They are registered once more when all are judged, so that no others need to be kept.

    Args:
        folder: Gets ``gallery/best.npz``, ``median.npz`` and ``worst.npz``, for
            ``python -m regnet_lab.evaluation.html_report.render``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder) / "gallery"
        self.records: list[tuple[int, dict[str, Any]]] = []

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        self.records.append((place, outputs["records"][-1]))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        judged = gathered(self.records)
        if not trainer.is_global_zero:
            return
        cases = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        for rank, (place, metric, record) in ranked(judged).items():
            batch = default_collate([cases[place]])
            pair = trainer.strategy.batch_to_device(batch)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                registration = pl_module(pair)
            told = {key: record[key] for key in ("case", "method")}
            shown = arrays(pair, registration) | told | {"metric": metric, "score": record[metric]}
            whole = io.BytesIO()
            np.savez_compressed(whole, **shown)
            write_bytes(self.folder / f"{rank}.npz", whole.getvalue())


def ranked(judged: list[tuple[int, dict[str, Any]]]) -> dict[str, tuple[int, str, dict[str, Any]]]:
    """Place, metric and record of the best, the median and the worst case, each case once."""
    for metric, sign in METRICS.items():
        known = [(p, r) for p, r in judged if np.isfinite(r.get(metric, np.nan))]
        if known:
            order = sorted(known, key=lambda case: (-sign * case[1][metric], case[0]))
            chosen = (0, (len(order) - 1) // 2, len(order) - 1)
            found = dict(zip(chosen, RANKS, strict=False))
            return {rank: (order[i][0], metric, order[i][1]) for i, rank in found.items()}
    return {}


def arrays(pair: Pair, registration: Registration) -> dict[str, Any]:
    """The first case as arrays without batch and channel, what is measured in half precision."""

    def half(tensor: Tensor) -> np.ndarray:
        return tensor[0].detach().float().cpu().numpy().astype(np.float16)

    u = registration.displacement
    shown: dict[str, Any] = {
        "fixed": half(pair["fixed"])[0],
        "moving": half(pair["moving"])[0],
        "warped": half(registration.warped)[0],
        "u": half(u),
        "determinant": half(ops.jacobian_determinant(u)),
        "spacing": pair["spacing"][0].cpu().numpy(),
    }
    if "fixed_labels" in pair and "moving_labels" in pair:
        warped = ops.warp(pair["moving_labels"], u, "nearest", "zeros")
        for name, labels in (("fixed_labels", pair["fixed_labels"]), ("warped_labels", warped)):
            shown[name] = labels[0, 0].cpu().numpy().astype(np.int16)
    return shown
