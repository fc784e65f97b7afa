"""What is shown while a model trains."""

import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import panels

log = logging.getLogger(__name__)


class ValidationLog(Callback):
    """One line in the log for every validation."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        listed = ", ".join(f"{k[4:]} {v:.4g}" for k, v in sorted(values.items()))
        minutes = (time.monotonic() - self.started) / 60
        log.info("%.1f min, step %d: %s", minutes, trainer.global_step, listed)


class ValidationPanel(EachCase):
    """The first case of the first and every ``every_n``-th validation after it in TensorBoard."""

    def __init__(self, every_n: int = 5) -> None:
        self.every_n, self.validations = every_n, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def validated(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        trainer = module.trainer
        due = place == 0 and self.validations % self.every_n == 0
        if not (due and isinstance(trainer.logger, TensorBoardLogger)):
            return
        out: Registration = outputs["registration"]
        board = trainer.logger.experiment
        board.add_figure("val/panel", panels.panel(pair, out), trainer.global_step)
        if len(out.fields) > 1:
            board.add_figure("val/fields", panels.iterations(pair, out), trainer.global_step)


class HyperParameters(Callback):
    """What was chosen, beside the ``monitor`` it led to, in TensorBoard's HPARAMS."""

    def __init__(self, parameters: Mapping[str, Any], monitor: str) -> None:
        self.parameters, self.monitor = dict(parameters), monitor

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(self.parameters, {self.monitor: math.nan})


class RememberGrid(Callback):
    """Write down on what grid the model is trained: ``shape`` and ``spacing`` (mm) of the first
    batch, for images it will meet that have other ones.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Pair, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and trainer.global_step == 0 and batch_idx == 0:
            spacing = [round(mm, 6) for mm in batch["spacing"].mean(0).tolist()]
            grid = {"shape": list(batch["fixed"].shape[2:]), "spacing": spacing}
            write_text(self.path, json.dumps(grid))
