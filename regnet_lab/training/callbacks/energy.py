"""The energy at every iteration of a model that returns a field for each."""

from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger

from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.utils.distributed import gathered
from regnet_lab.visualization import iterations, panels


class EnergyCurve(EachCase):
    """Image energy, roughness and learned step by iteration, the mean over held-out pairs.

    At the first and every ``every_n``-th validation after it a picture in TensorBoard; at a test
    ``energy.csv``, ``energy_cases.csv`` and ``energy.png``, and of the first cases a picture of
    their iterations.
    A model that returns one field has no curve.

    Args:
        folder: Where the files of a test go.
        every_n: Validations from one picture to the next.
        pictures: Cases of a test of which a picture is made.
        measure: The energy; null: the model's own, or the mean of squares if it has none.
    """

    def __init__(
        self,
        folder: str,
        every_n: int = 5,
        pictures: int = 4,
        measure: iterations.Measure | None = None,
    ) -> None:
        self.folder, self.every_n, self.validations = Path(folder), every_n, 0
        self.pictures, self.measure = pictures, measure
        self.watched = ExitStack()
        self.curves: list[list[dict[str, Any]]] = []

    def watch(self, pl_module: LightningModule) -> None:
        self.watched.close()
        self.steps = self.watched.enter_context(iterations.learned_steps(pl_module.model))  # type: ignore

    def note(self, pl_module: LightningModule, out: Registration, pair: Pair) -> None:
        """Take down the curve of a case."""
        steps, self.steps[:] = list(self.steps), []
        if len(out.fields) < 2:
            return
        rows = iterations.energies(
            pair, out.fields, self.measure or iterations.own_energy(pl_module)
        )
        case = {"method": pl_module.name, "case": pair["name"][0]}
        self.curves.append([case | row for row in iterations.with_learned_steps(rows, steps)])

    def rows(self) -> list[dict[str, Any]]:
        """The curves of all cases, also of other processes, below one another."""
        return list(chain(*gathered(self.curves)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.curves = []
        self.due = self.validations % self.every_n == 0
        self.validations += 1
        if self.due:
            self.watch(pl_module)

    def validated(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        if self.due:
            self.note(module, outputs["registration"], pair)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watched.close()
        rows = self.rows()
        if rows and trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            picture = iterations.figure(iterations.mean_curve(rows))
            trainer.logger.experiment.add_figure("val/energy", picture, trainer.global_step)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch(pl_module)

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        out = outputs["registration"]
        self.note(module, out, pair)
        if place < self.pictures and len(out.fields) > 1:
            picture = self.folder / "pictures" / f"{pair['name'][0]}_iterations.png"
            write_figure(picture, panels.iterations(pair, out))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watched.close()
        rows = self.rows()
        if rows and trainer.is_global_zero:
            cases = pd.DataFrame(rows)
            curve = iterations.mean_curve(rows)
            write_text(self.folder / "energy_cases.csv", cases.to_csv(index=False))
            write_text(self.folder / "energy.csv", curve.to_csv(index=False))
            write_figure(self.folder / "energy.png", figure := iterations.figure(curve), figure.dpi)
