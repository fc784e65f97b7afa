"""Callbacks that look at every case."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from regnet_lab.types import Pair


class EachCase(Callback):
    """Is shown every held-out case once it is done, with what the module's step returned and the
    case's place among those of all processes.
    """

    def validated(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        """A case of a validation is done."""

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        """A case of a test is done."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *case: Any, **_: Any
    ) -> None:
        outputs, pair, index = case[:3]
        self.validated(pl_module, outputs, pair, index * trainer.world_size + trainer.global_rank)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *case: Any, **_: Any
    ) -> None:
        outputs, pair, index = case[:3]
        self.judged(pl_module, outputs, pair, index * trainer.world_size + trainer.global_rank)
