"""Training of a model's parts in turn."""

from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from regnet_lab.errors import UserError


class AlternatingTraining(Callback):
    """Train one part of the model at a time, with all others frozen, in repeated rounds.

    Args:
        epochs: Epochs of each part in a round, in order, such as ``{model: 3, refinement: 4}``.
            Parts are submodules of the model.  ``trainer.max_epochs`` ends the training.
    """

    def __init__(self, epochs: Mapping[str, int]) -> None:
        self.epochs = dict(epochs)
        self.trainable: list[nn.Parameter] = []

    def get_active_part(self, epoch: int) -> str:
        """Return the name of the part that is trained in ``epoch``."""
        schedule = [part for part, n in self.epochs.items() for _ in range(n)]
        return schedule[epoch % len(schedule)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = pl_module.get_submodule("model")
        parts = dict(model.named_children())
        for part in self.epochs:
            if part not in parts:
                raise UserError(
                    f"callbacks.alternating.epochs.{part}: {type(model).__name__} has no part of "
                    f"that name; it has {', '.join(parts)}."
                )
        self.trainable = [p for p in model.parameters() if p.requires_grad]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # not called if resumed within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = pl_module.get_submodule(f"model.{self.get_active_part(trainer.current_epoch)}")
        active = {id(p) for p in part.parameters()}
        for p in self.trainable:
            p.requires_grad_(id(p) in active)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for p in self.trainable:
            p.requires_grad_()
