"""The judged cases as tables and pictures."""

import json
import platform
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console

from regnet_lab.metrics import tables
from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.utils.distributed import gathered
from regnet_lab.visualization import panels


class CaseTable(EachCase):
    """Write every judged case as it is done, then the tables of all of them; print the summary.

    Args:
        folder: Gets ``records.jsonl``, ``cases.csv``, ``labels.csv``, ``summary.json``,
            ``summary.md`` and ``pictures/``.
        pictures: Number of cases of which a picture is made.
    """

    def __init__(self, folder: str, pictures: int = 4) -> None:
        self.folder, self.pictures = Path(folder), pictures
        self.records: list[dict[str, Any]] = []
        self.rows: list[list[dict[str, Any]]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / f"records.{trainer.global_rank}.jsonl"
        self.journal.unlink(missing_ok=True)
        self.rows = []

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        self.rows.append(outputs["records"])
        with self.journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in outputs["records"])
        if place < self.pictures:
            picture = self.folder / "pictures" / f"{pair['name'][0]}.png"
            write_figure(picture, panels.panel(pair, outputs["registration"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.records += chain(*gathered(self.rows))
        if trainer.is_global_zero:
            tables.write(self.records, self.folder)
            Console().print(tables.rich_table(tables.summary(self.records)))


def device_name(device: torch.device) -> str:
    """``NVIDIA A100``, or the processor with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


class About(Callback):
    """Write ``about.json``: the method, its trainable parameters, the device it ran on and the run.

    Args:
        folder: Gets the file.
        run: Of which the weights are; null: of none.
    """

    def __init__(self, folder: str, run: str | None = None) -> None:
        self.folder, self.run = Path(folder), run

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        about = {
            "method": pl_module.name,
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "device": device_name(pl_module.device),
            "run": self.run,
        }
        write_text(self.folder / "about.json", json.dumps(about, indent=2))
