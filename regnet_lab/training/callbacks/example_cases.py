"""Arrays of the best, the median and the worst tested case, for the HTML report."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.training.callbacks.base import CaseCallback
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_bytes
from regnet_lab.utils.distributed import gather_interleaved

# The first available metric ranks the cases; 1: higher is better
METRICS = {"dice": 1, "tre_mm": -1, "epe_vox": -1, "rmse": -1}
RANKS = ("best", "median", "worst")


class ExampleCases(CaseCallback):
    """Save images and displacement of the best, the median and the worst case.

    These cases are registered again at the end of the test, so that the others need not be kept
    in memory.

    Args:
        folder: Gets ``gallery/best.npz``, ``median.npz`` and ``worst.npz``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder) / "gallery"
        self.records: list[tuple[int, dict[str, Any]]] = []

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        self.records.append((index, outputs["records"][-1]))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        records = gather_interleaved(self.records)
        if not trainer.is_global_zero:
            return
        loader: Any = trainer.test_dataloaders
        for rank, (index, metric, record) in select_examples(records).items():
            pair = trainer.strategy.batch_to_device(default_collate([loader.dataset[index]]))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                registration = pl_module(pair)
            arrays = convert_to_arrays(pair, registration)
            arrays |= {"case": record["case"], "method": record["method"]}
            arrays |= {"metric": metric, "score": record[metric]}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)
            write_bytes(self.folder / f"{rank}.npz", buffer.getvalue())


def select_examples(
    records: list[tuple[int, dict[str, Any]]],
) -> dict[str, tuple[int, str, dict[str, Any]]]:
    """Return index, metric and record of the best, the median and the worst case.

    With fewer than three cases none is used twice.
    """
    for metric, sign in METRICS.items():
        finite = [(i, r) for i, r in records if np.isfinite(r.get(metric, np.nan))]
        if finite:
            order = sorted(finite, key=lambda case: (-sign * case[1][metric], case[0]))
            positions = (0, (len(order) - 1) // 2, len(order) - 1)
            ranks = dict(zip(positions, RANKS, strict=False))
            return {rank: (order[k][0], metric, order[k][1]) for k, rank in ranks.items()}
    return {}


def convert_to_arrays(pair: Pair, registration: Registration) -> dict[str, Any]:
    """Return the first case as arrays without batch and channel axis, real values as float16."""

    def to_float16(tensor: Tensor) -> np.ndarray:
        return tensor[0].detach().float().cpu().numpy().astype(np.float16)

    u = registration.displacement
    arrays: dict[str, Any] = {
        "fixed": to_float16(pair["fixed"])[0],
        "moving": to_float16(pair["moving"])[0],
        "warped": to_float16(registration.warped)[0],
        "u": to_float16(u),
        "determinant": to_float16(ops.jacobian_determinant(u)),
        "spacing": pair["spacing"][0].cpu().numpy(),
    }
    if "fixed_labels" in pair and "moving_labels" in pair:
        warped = ops.warp(pair["moving_labels"], u, "nearest", "zeros")
        for name, labels in (("fixed_labels", pair["fixed_labels"]), ("warped_labels", warped)):
            arrays[name] = labels[0, 0].cpu().numpy().astype(np.int32)
    return arrays
