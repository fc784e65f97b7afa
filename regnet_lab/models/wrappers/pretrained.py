"""Models that training has finished with, as parts of others."""

from pathlib import Path

import torch
from torch import Tensor, nn

from regnet_lab.errors import UserError

PREFIX = "model."  # of the model's weights in a checkpoint


class Pretrained(nn.Module):
    """A model with the weights of a run.

    Args:
        model: As the run had it.
        checkpoint: A file in the run's ``checkpoints``; null: the model as it is.

    Raises:
        UserError: The file is missing, no checkpoint, or of another model.
    """

    def __init__(self, model: nn.Module, checkpoint: str | None = None) -> None:
        super().__init__()
        self.model = model
        if checkpoint is not None:
            self.load(Path(checkpoint))

    def load(self, path: Path) -> None:
        """Take over the weights."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:
            raise UserError(f"{path}: cannot be read as a checkpoint; name another.") from error
        own = {k.removeprefix(PREFIX): w for k, w in state.items() if k.startswith(PREFIX)}
        try:
            self.model.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"{path}: holds the weights of another model than {type(self.model).__name__}."
            ) from error

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        return self.model(fixed, moving)
