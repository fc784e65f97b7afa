"""What a table of costs must name: the machine, and how large the model is."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from regnet_lab.report.files import write_text


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
