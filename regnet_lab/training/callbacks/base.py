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


def compute_case_index(trainer: Trainer, batch_idx: int) -> int:
    """Return the index of this process' case among those of all processes."""
    return batch_idx * trainer.world_size + trainer.global_rank


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

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.on_validation_case_end(*_identify_case(trainer, *args, **kwargs))

    def on_test_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.on_test_case_end(*_identify_case(trainer, *args, **kwargs))


def _identify_case(
    trainer: Trainer, pl_module: Any, outputs: Any, batch: Pair, index: int, dataloader_idx: int = 0
) -> tuple[LightningModule, Any, Pair, int]:
    return pl_module, outputs, batch, compute_case_index(trainer, index)
