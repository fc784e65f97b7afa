"""Base class of callbacks that process every evaluated case, and access to TensorBoard."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from regnet_lab.types import Pair


def get_tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """Return the TensorBoard writer of the first process; None elsewhere or without TensorBoard."""
    logger = trainer.logger
    if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
        return logger.experiment
    return None


class CaseCallback(Callback):
    """Callback with a hook for every validated or tested case.

    Batches of both have one pair.  The hooks get the output of the module's step and the index of
    the case among those of all processes.
    """

    def on_validation_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        """Process a case of a validation."""

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        """Process a case of a test."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        index = batch_idx * trainer.world_size + trainer.global_rank
        self.on_validation_case_end(pl_module, outputs, batch, index)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Pair,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        index = batch_idx * trainer.world_size + trainer.global_rank
        self.on_test_case_end(pl_module, outputs, batch, index)
