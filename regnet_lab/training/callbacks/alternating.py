"""Parts of a model that learn in turn."""

from collections.abc import Mapping

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from regnet_lab.errors import UserError


class Alternation(Callback):
    """Let one part of the model learn at a time, the others being frozen, over and over.

    Args:
        epochs: How many each part learns for, in order, such as ``{model: 3, refinement: 4}``;
            a part is named as the model's attribute.  ``trainer.max_epochs`` ends the rounds.
    """

    def __init__(self, epochs: Mapping[str, int]) -> None:
        self.epochs = dict(epochs)

    def turn(self, epoch: int) -> str:
        """The part that learns in ``epoch``."""
        turns = [part for part, n in self.epochs.items() for _ in range(n)]
        return turns[epoch % len(turns)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        for part in self.epochs:
            if not isinstance(getattr(model, part, None), nn.Module):
                raise UserError(
                    f"callbacks.alternation.epochs.{part}: {type(model).__name__} has no part of "
                    f"that name; it has {', '.join(name for name, _ in model.named_children())}."
                )
        self.learning = [p for p in model.parameters() if p.requires_grad]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # also where training resumes in mid-epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = getattr(pl_module.model, self.turn(trainer.current_epoch))
        chosen = {id(p) for p in part.parameters()}
        for p in self.learning:
            p.requires_grad_(id(p) in chosen)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for p in self.learning:
            p.requires_grad_()
