"""Checkpoints that survive."""

import logging
import signal
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from regnet_lab.pair import Pair

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
