"""Log lines, figures and files that describe a training."""

import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from regnet_lab.training.callbacks.base import CaseCallback, get_tensorboard
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import panels

log = logging.getLogger(__name__)


class ValidationLog(Callback):
    """Log the metrics of every validation in one line, with training time and step."""

    def __init__(self) -> None:
        self.start_time = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start_time = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        text = ", ".join(f"{k[4:]} {v:.4g}" for k, v in sorted(metrics.items()))
        minutes = (time.monotonic() - self.start_time) / 60
        log.info("%.1f min, step %d: %s", minutes, trainer.global_step, text)


class ValidationFigure(CaseCallback):
    """Draw the first case of a validation in TensorBoard.

    Args:
        every_n_validations: Validations between two figures; the first one is drawn.
    """

    def __init__(self, every_n_validations: int = 5) -> None:
        self.every_n_validations, self.validations = every_n_validations, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def on_validation_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        step, writer = module.trainer.global_step, get_tensorboard(module.trainer)
        is_due = index == 0 and self.validations % self.every_n_validations == 0
        if writer is None or not is_due:
            return
        out: Registration = outputs["registration"]
        writer.add_figure("val/panel", panels.draw_registration(pair, out), step)
        if len(out.fields) > 1:
            writer.add_figure("val/fields", panels.draw_iterations(pair, out), step)


class HyperparameterLog(Callback):
    """Log settings, beside the ``monitor`` they lead to, in TensorBoard's HPARAMS tab."""

    def __init__(self, parameters: Mapping[str, Any], monitor: str) -> None:
        self.parameters, self.monitor = dict(parameters), monitor

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(self.parameters, {self.monitor: math.nan})


class SaveTrainingGrid(Callback):
    """Save ``shape`` and ``spacing`` (mm) of the first training batch as JSON.

    Registration of other images resamples them to this grid.
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
