"""Every picture group of DIRV-Net as files."""

from pathlib import Path

import pandas as pd
import torch
from pytorch_lightning import Trainer
from rich.console import Console

from regnet_lab.module import RegistrationModule
from regnet_lab.pair import Pair
from regnet_lab.report import dirvnet, experts


class Pictures:
    """Draw the first pairs of the split, and what the model learned, one PNG for each group.

    Args:
        folder: Where they go.
        history: The run's ``levels.csv``, which the callback ``UnrolledPictures`` writes; without
            such a file there is no picture of the training.
        cases: Number of pairs, all of one size.
    """

    def __init__(self, folder: str, history: str, cases: int = 8) -> None:
        self.folder, self.history, self.cases = Path(folder), Path(history), cases

    def run(
        self, trainer: Trainer, module: RegistrationModule, data: torch.utils.data.DataLoader
    ) -> None:
        pair = dirvnet.preview(data.dataset, self.cases)
        rows = pd.read_csv(self.history).to_dict("records") if self.history.is_file() else []
        pages = (
            dirvnet.of_batch(pair, dirvnet.answer(module, pair))
            | dirvnet.of_model(module)
            | dirvnet.of_training(slopes(module, pair), rows)
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pages.items():
            figure.savefig(self.folder / f"{name}.png")
        Console().print(f"{len(pages)} pictures in {self.folder}", soft_wrap=True, highlight=False)


def slopes(module: RegistrationModule, pair: Pair) -> dict[str, torch.Tensor]:
    """Gradients of the run's objective on a batch; nothing for a model that is no run's."""
    if not module.losses or not experts.levels(module):
        return {}
    module.train()
    out = module(pair)
    torch.stack([loss.weight * loss(pair, out) for loss in module.losses.values()]).sum().backward()
    return experts.gradients(module)
