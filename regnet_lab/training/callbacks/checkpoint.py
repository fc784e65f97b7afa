"""Checkpoints that survive crashes, interrupts and full disks."""

import io
import logging
import signal
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from regnet_lab.errors import DivergedError
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import atomic_path
from regnet_lab.utils.distributed import all_gather

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# of terminals and batch systems; left alone where somebody else handles or ignores them
FURTHER_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


def save_atomically(content: object, path: str | Path, *remedy: str) -> None:
    """Save an object with ``torch.save`` so that the file is complete or unchanged.

    ``remedy`` is what the user can do if the disk is full or the folder not writable.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_path(path, *remedy) as temporary:
        temporary.write_bytes(buffer.getbuffer())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are complete or unchanged, and on the disk before training goes on.

    Lightning's own are written to the system's temporary folder and, if that is on another disk,
    copied from there, which a crash can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        run = Path(path).parent.parent
        remedy = f"make room and continue from the previous checkpoint, train.py resume={run}"
        save_atomically(checkpoint, path, remedy)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint file; folders and paths with ``..`` are left alone."""
        path = Path(path)
        if path.is_file() and path.suffix == ".ckpt" and ".." not in path.parts:
            path.unlink()


class LastCheckpoint(Checkpoint):
    """Keep one checkpoint of the latest state, from which training resumes exactly.

    It is saved every ``every_n_steps`` training steps, after every validation, at the end, and
    when any process is interrupted (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGXCPU).  Then all processes
    first finish the running step with all its accumulated batches, or the running validation and
    the step after it; a second SIGINT stops at once.

    As a ``Checkpoint`` it is called by Lightning after all other callbacks and after checkpoints
    listed before it, so that it includes the state of the one that keeps the best checkpoint.
    """

    def __init__(self, path: str, every_n_steps: int = 100) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.stop_requested = False
        self.saved_step = -1
        self.previous_handlers: dict[int, Any] = {}  # by signal

    def save(self, trainer: Trainer) -> None:
        """Save the checkpoint."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.path)

    def request_stop(self, *_: object) -> None:
        """Stop after the running step; handler of the signals."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self.stop_requested:
            log.info("Interrupted: finishing this step.")
        self.stop_requested = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replaces Lightning's handler of SIGTERM, which would communicate within a step
        free = [sign for sign in FURTHER_SIGNALS if signal.getsignal(sign) == signal.SIG_DFL]
        for sign in (*SIGNALS, *free):
            self.previous_handlers[sign] = signal.signal(sign, self.request_stop)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Pair, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # further batches are accumulated for this step
        if any(all_gather(self.stop_requested)):
            self.save(trainer)
            run = Path(self.path).parent.parent
            log.info("Stopped; continue with python train.py resume=%s", run)
            raise KeyboardInterrupt
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.saved_step:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)
        self.restore_signal_handlers()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.restore_signal_handlers()

    def restore_signal_handlers(self) -> None:
        """Restore the handlers from before the training."""
        for sign, handler in self.previous_handlers.items():
            signal.signal(sign, handler)


class SaveDivergedBatch(Callback):
    """Save the batch on which a loss or a gradient was not finite.

    ``torch.load(path, weights_only=True)`` gives ``step``, ``pair`` (the batch), ``state_dict``
    (the weights at that step) and ``reason``.

    Args:
        path: The file.  With several processes, the one whose loss diverged writes it; if the
            gradient did, which is the mean over all, the first.
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
                content = {
                    "step": trainer.global_step,
                    "reason": str(exception),
                    "pair": dict(exception.batch),
                    "state_dict": pl_module.state_dict(),
                }
                save_atomically(content, self.path)
                log.warning("The batch and the weights were saved in %s", self.path)
        finally:
            all_gather(None)  # wait: the first process must not end before the file is written
