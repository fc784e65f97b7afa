"""The insides of an unrolled model, in TensorBoard, while it trains."""

from pathlib import Path

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim import Optimizer

from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import dirvnet, dirvnet_experts, dirvnet_images


class UnrolledPictures(Callback):
    """The first validation pairs, the same ones all along, and what a DIRV-Net learned.

    After every epoch the errors of every level go into ``levels.csv``; every ``every_n_epochs``
    epochs all pictures of :mod:`regnet_lab.visualization.dirvnet` go to TensorBoard, with the
    configuration as text.

    Args:
        folder: The run's, for ``levels.csv``.
        cases: Number of pairs, all of one size.
        every_n_epochs: Epochs between pictures.
    """

    def __init__(self, folder: str, cases: int = 8, every_n_epochs: int = 5) -> None:
        self.folder, self.table = Path(folder), Path(folder) / "levels.csv"
        self.cases, self.every_n_epochs = cases, every_n_epochs
        self.slopes: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pair = dirvnet.preview(trainer.datamodule.pairs("val"), self.cases)  # type: ignore[attr-defined]
        self.pair = trainer.strategy.batch_to_device(pair)
        before = pd.read_csv(self.table).to_dict("records") if self.table.is_file() else []
        self.history = [row for row in before if row["step"] < trainer.global_step]
        self.watch(trainer, pl_module)

    def watch(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the errors of every level."""
        self.out = dirvnet.answer(module, self.pair)
        rows = dirvnet_images.level_errors(self.pair, self.out)
        self.history += [{"step": trainer.global_step} | row for row in rows]
        if trainer.is_global_zero:
            write_text(self.table, pd.DataFrame(self.history).to_csv(index=False))

    def due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.is_last_batch and self.due(trainer):
            self.slopes = dirvnet_experts.gradients(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch(trainer, pl_module)
        shown = trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)
        if not (shown and self.due(trainer)):
            return
        board = trainer.logger.experiment  # type: ignore[union-attr]
        pages = {
            "batch": dirvnet.of_batch(self.pair, self.out),
            "model": dirvnet.of_model(pl_module),
            "training": dirvnet.of_training(self.slopes, self.history),
        }
        for group, figures in pages.items():
            for name, figure in figures.items():
                board.add_figure(f"{group}/{name}", figure, trainer.global_step)
        settings = self.folder / "config.yaml"
        if settings.is_file():
            text = settings.read_text(encoding="utf-8")
            board.add_text("configuration", f"```\n{text}\n```", trainer.global_step)
