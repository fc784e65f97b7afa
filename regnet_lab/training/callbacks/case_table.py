"""Tables and figures of the evaluated cases, and a file about the evaluated model."""

import json
import platform
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console

from regnet_lab.metrics import tables
from regnet_lab.training.callbacks.base import CaseCallback
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.utils.distributed import gather_interleaved
from regnet_lab.utils.text import make_file_name
from regnet_lab.visualization import panels


class CaseTable(CaseCallback):
    """Write the records of every tested case at once and the tables at the end; print the summary.

    Args:
        folder: Folder for ``records.<rank>.jsonl``, ``cases.csv``, ``labels.csv``,
            ``summary.json``, ``summary.md`` and ``pictures/``.
        num_pictures: Number of cases of which a figure is written.
    """

    def __init__(self, folder: str, num_pictures: int = 4) -> None:
        self.folder, self.num_pictures = Path(folder), num_pictures
        self.records: list[dict[str, Any]] = []  # of all processes and tests
        self.case_records: list[list[dict[str, Any]]] = []  # of this process and test
        self.records_path = self.folder / "records.0.jsonl"

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.records_path = self.folder / f"records.{trainer.global_rank}.jsonl"
        self.records_path.unlink(missing_ok=True)
        self.case_records = []

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        self.case_records.append(outputs["records"])
        with self.records_path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in outputs["records"])
        if index < self.num_pictures:
            path = self.folder / "pictures" / f"{make_file_name(pair['name'][0])}.png"
            write_figure(path, panels.draw_registration(pair, outputs["registration"]))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.records += chain(*gather_interleaved(self.case_records))
        if trainer.is_global_zero:
            tables.write_tables(self.records, self.folder)
            Console().print(tables.summary_to_rich(tables.summarize(self.records)))


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the architecture of the CPU and the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


class RunInfo(Callback):
    """Write ``about.json``: method, number of trainable parameters, device and training run.

    Args:
        folder: Folder for the file.
        run: Run directory that the weights come from; None: none.
    """

    def __init__(self, folder: str, run: str | None = None) -> None:
        self.folder, self.run = Path(folder), run

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        parameters = pl_module.get_submodule("model").parameters()
        info = {
            "method": pl_module.name,
            "parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "device": describe_device(pl_module.device),
            "run": self.run,
        }
        write_text(self.folder / "about.json", json.dumps(info, indent=2))
