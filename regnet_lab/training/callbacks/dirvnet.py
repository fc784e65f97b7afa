"""Figures of a DIRV-Net in TensorBoard while it trains."""

from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from regnet_lab.training.callbacks.base import get_tensorboard
from regnet_lab.types import Registration
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import dirvnet, field_of_experts


class DIRVNetFigures(Callback):
    """Errors of every level and figures of the first validation pairs and the learned parameters.

    After every epoch the errors of every level go to ``levels.csv``.  Every ``every_n_epochs``
    epochs the figures of :mod:`regnet_lab.visualization.dirvnet` and the configuration as text go
    to TensorBoard.

    Args:
        folder: Run directory.
        num_cases: Number of pairs, all of one size.
    """

    def __init__(self, folder: str, num_cases: int = 8, every_n_epochs: int = 5) -> None:
        self.folder, self.levels_csv = Path(folder), Path(folder) / "levels.csv"
        self.num_cases, self.every_n_epochs = num_cases, every_n_epochs
        self.pair: Any = None  # the same batch for the whole training
        self.gradients: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dataset = trainer.datamodule.make_dataset("val")  # type: ignore[attr-defined]
        pair = dirvnet.collate_first_pairs(dataset, self.num_cases)
        self.pair = trainer.strategy.batch_to_device(pair)
        if self.levels_csv.is_file():  # of the run that is resumed
            rows = pd.read_csv(self.levels_csv).to_dict("records")
            self.history = [row for row in rows if row["step"] < trainer.global_step]
        self.record_errors(trainer, pl_module)

    def record_errors(self, trainer: Trainer, module: LightningModule) -> Registration:
        """Register the pairs and add the errors of every level to the table."""
        registration = dirvnet.register_without_grad(module, self.pair)
        rows = dirvnet.compute_level_errors(self.pair, registration)
        self.history += [{"step": trainer.global_step} | row for row in rows]
        if trainer.is_global_zero:
            write_text(self.levels_csv, pd.DataFrame(self.history).to_csv(index=False))
        return registration

    def is_due(self, trainer: Trainer) -> bool:
        """Return whether figures are drawn after this epoch."""
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.is_last_batch and self.is_due(trainer):
            self.gradients = field_of_experts.collect_gradients(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        out = self.record_errors(trainer, pl_module)
        writer = get_tensorboard(trainer)
        if writer is None or not self.is_due(trainer):
            return
        figures = dirvnet.draw_figures(pl_module, self.pair, out, self.gradients, self.history)
        for tag, figure in figures.items():
            writer.add_figure(tag, figure, trainer.global_step)
        config = self.folder / "config.yaml"
        if config.is_file():
            text = config.read_text(encoding="utf-8")
            writer.add_text("configuration", f"```\n{text}\n```", trainer.global_step)
