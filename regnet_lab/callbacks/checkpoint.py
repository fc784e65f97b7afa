"""Checkpoints that survive."""

import io
import logging
import signal
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.io import TorchCheckpointIO

from regnet_lab.durable import written
from regnet_lab.errors import DivergedError
from regnet_lab.pair import Pair

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are whole or not there, and on the disk when training goes on.

    Lightning's own are first written to the system's folder for temporary files, and copied from
    there, byte after byte, where that is another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write it.

        Raises:
            UserError: The disk is full or the folder cannot be written to.
        """
        whole = io.BytesIO()
        torch.save(checkpoint, whole)
        run = Path(path).parent.parent
        remedy = f"make room and continue from the one before it, train.py resume={run}"
        with written(path, remedy) as aside:
            aside.write_bytes(whole.getbuffer())

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint's file, never a folder nor what a path with .. leads to."""
        path = Path(path)
        if path.is_file() and path.suffix == ".ckpt" and ".." not in path.parts:
            path.unlink()


class LastCheckpoint(Callback):
    """Keep one checkpoint of the latest state, from which training continues exactly.

    Written every ``every_n_steps`` training steps, after every validation, at the end, and on an
    interrupt (SIGINT), for which the running step is finished first; a second interrupt does not
    wait.
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


class DivergedBatch(Callback):
    """Keep what a loss or a gradient stopped being finite on, for study.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``pair`` (the batch), ``state_dict``
    (the weights it met) and ``reason``.

    Args:
        path: The file; of several processes the first keeps its own.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.batch: Pair | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Pair, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batch = batch

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not (isinstance(exception, DivergedError) and trainer.is_global_zero):
            return
        found = {
            "step": trainer.global_step,
            "reason": str(exception),
            "pair": dict(self.batch or {}),
            "state_dict": pl_module.state_dict(),
        }
        whole = io.BytesIO()
        torch.save(found, whole)
        with written(self.path) as aside:
            aside.write_bytes(whole.getbuffer())
        log.warning("The batch and the weights are kept in %s", self.path)
