"""Checkpoints that survive."""

import io
import logging
import signal
from pathlib import Path
from typing import Any, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from regnet_lab.errors import DivergedError
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import written
from regnet_lab.utils.distributed import everyone

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def save_whole(content: object, path: str | Path, *remedy: str) -> None:
    """Write what ``torch.load`` reads, so that it is whole or not there.

    Raises:
        UserError: The disk is full or the folder cannot be written to.
    """
    whole = io.BytesIO()
    torch.save(content, whole)
    with written(path, *remedy) as aside:
        aside.write_bytes(whole.getbuffer())


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
        run = Path(path).parent.parent
        remedy = f"make room and continue from the one before it, train.py resume={run}"
        save_whole(checkpoint, path, remedy)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint's file, never a folder nor what a path with .. leads to."""
        path = Path(path)
        if path.is_file() and path.suffix == ".ckpt" and ".." not in path.parts:
            path.unlink()


class LastCheckpoint(Checkpoint):
    """Keep one checkpoint of the latest state, from which training continues exactly.

    Written every ``every_n_steps`` training steps, after every validation, at the end, and when
    any process is interrupted (SIGINT, SIGTERM).  Then all of them finish the running step, with
    every batch that is accumulated for it, or the running validation and the step after it; a
    second SIGINT does not wait.

    Lightning calls it, being a ``Checkpoint``, after all other callbacks, and after the one that
    keeps the best checkpoint if that is listed above it: what was best so far is kept, too.
    """

    def __init__(self, path: str, every_n_steps: int = 100) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.interrupted = False
        self.saved_step = -1
        self.usual: dict[int, Any] = {}  # what else a signal does

    def save(self, trainer: Trainer) -> None:
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def stop(self, trainer: Trainer) -> NoReturn:
        self.save(trainer)
        run = Path(self.path).parent.parent
        log.info("Stopped; continue with python train.py resume=%s", run)
        raise KeyboardInterrupt

    def interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.interrupted:
            log.info("Interrupted: finishing this step.")
        self.interrupted = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has its own for SIGTERM by now, which talks to other processes in mid-step
        self.usual = {sign: signal.signal(sign, self.interrupt) for sign in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pair, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # in the midst of a step
        if any(everyone(self.interrupted)):
            self.stop(trainer)
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.saved_step:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        self.restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.restore()

    def restore(self) -> None:
        for sign, handler in self.usual.items():
            signal.signal(sign, handler)


class DivergedBatch(Callback):
    """Keep what a loss or a gradient stopped being finite on, for study.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``pair`` (the batch), ``state_dict``
    (the weights it met) and ``reason``.

    Args:
        path: The file; of several processes the one whose loss it is writes it, and of a gradient,
            which is the mean of all, the first.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not isinstance(exception, DivergedError):
            return
        try:
            if exception.batch is not None:
                found = {
                    "step": trainer.global_step,
                    "reason": str(exception),
                    "pair": dict(exception.batch),
                    "state_dict": pl_module.state_dict(),
                }
                save_whole(found, self.path)
                log.warning("The batch and the weights are kept in %s", self.path)
        finally:
            everyone(None)  # the end of the first process would be that of the one that writes
