"""What happens beside training: checkpoints that survive, a log, pictures, tables."""

import json
import logging
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from regnet_lab.pair import Pair, Registration
from regnet_lab.report import figures, tables

log = logging.getLogger(__name__)


class LastCheckpoint(Callback):
    """Keep one checkpoint of the latest state, from which training continues exactly.

    Written every ``every_n_steps`` training steps, after every validation, at the end, and on an
    interrupt (SIGINT), for which the running step is finished first; a second interrupt does not
    wait.  Lightning writes aside and renames.
    """

    def __init__(self, path: str, every_n_steps: int = 100) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.interrupted = False
        self.saved_step = -1

    def save(self, trainer: Trainer) -> None:
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.interrupted = True
            log.info(
                "Interrupted: finishing this step; continue with python train.py resume=%s",
                Path(self.path).parent.parent,
            )

        signal.signal(signal.SIGINT, interrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pair, index: int
    ) -> None:
        due = trainer.global_step % self.every_n_steps == 0
        if self.interrupted or (due and trainer.global_step != self.saved_step):
            self.save(trainer)
        if self.interrupted:
            raise KeyboardInterrupt

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.interrupted and not trainer.sanity_checking:
            self.save(trainer)
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            signal.signal(signal.SIGINT, signal.default_int_handler)


class ValidationLog(Callback):
    """One line in the log for every validation."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        listed = ", ".join(f"{k[4:]} {v:.4g}" for k, v in sorted(values.items()))
        minutes = (time.monotonic() - self.started) / 60
        log.info("%.1f min, step %d: %s", minutes, trainer.global_step, listed)


class ValidationPanel(Callback):
    """The first validation case as a picture in TensorBoard every ``every_n_epochs`` epochs."""

    def __init__(self, every_n_epochs: int = 5) -> None:
        self.every_n_epochs = every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = batch_idx == 0 and trainer.current_epoch % self.every_n_epochs == 0
        if not (due and trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)):
            return
        out: Registration = outputs["registration"]
        board = trainer.logger.experiment
        board.add_figure("val/panel", figures.panel(batch, out), trainer.global_step)
        if len(out.fields) > 1:
            board.add_figure("val/fields", figures.iterations(batch, out), trainer.global_step)


class HyperParameters(Callback):
    """What was chosen, beside the ``monitor`` it led to, in TensorBoard's HPARAMS."""

    def __init__(self, parameters: Mapping[str, Any], monitor: str) -> None:
        self.parameters, self.monitor = dict(parameters), monitor

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(self.parameters, {self.monitor: math.nan})


class CaseTable(Callback):
    """Write every judged case as it is done, then the tables of all of them; print the summary.

    Args:
        folder: Gets ``records.jsonl``, ``cases.csv``, ``labels.csv``, ``summary.json``,
            ``summary.md`` and ``pictures/``.
        pictures: Number of cases of which a picture is made.
    """

    def __init__(self, folder: str, pictures: int = 4) -> None:
        self.folder, self.pictures = Path(folder), pictures
        self.records: list[dict[str, Any]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = self.folder / f"records.{trainer.global_rank}.jsonl"
        self.journal.unlink(missing_ok=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.records += outputs["records"]
        with self.journal.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in outputs["records"])
        if batch_idx < self.pictures and trainer.is_global_zero:
            picture = self.folder / "pictures" / f"{batch['name'][0]}.png"
            picture.parent.mkdir(exist_ok=True)
            figures.panel(batch, outputs["registration"]).savefig(picture)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        everyone = [self.records]
        if trainer.world_size > 1:
            everyone = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(everyone, self.records)
        if trainer.is_global_zero:
            records = [record for part in everyone for record in part]
            tables.write(records, self.folder)
            Console().print(tables.rich_table(tables.summary(records)))
