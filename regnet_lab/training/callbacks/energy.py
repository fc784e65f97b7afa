"""Energy curves of models that return a field for every iteration."""

from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import LightningModule, Trainer

from regnet_lab.training.callbacks.base import CaseCallback, get_tensorboard
from regnet_lab.types import Pair, Registration
from regnet_lab.utils.atomic_io import write_figure, write_text
from regnet_lab.utils.distributed import gather_interleaved
from regnet_lab.utils.text import make_file_name
from regnet_lab.visualization import iterations, panels


class EnergyCurve(CaseCallback):
    """Image energy, roughness and learned step by iteration, averaged over held-out pairs.

    A figure goes to TensorBoard at the first validation and at every
    ``every_n_validations``-th after it.  A test writes ``energy.csv``, ``energy_cases.csv``,
    ``energy.png`` and figures of the iterations of the first cases.  Models that return a single
    field have no curve.

    Args:
        folder: Folder for the files of a test.
        num_pictures: Number of cases of a test of which a figure is written.
        measure: Energy to compute; None: the model's own, or the mean square if it has none.
    """

    def __init__(
        self,
        folder: str,
        every_n_validations: int = 5,
        num_pictures: int = 4,
        measure: iterations.EnergyFunction | None = None,
    ) -> None:
        self.folder, self.num_pictures, self.measure = Path(folder), num_pictures, measure
        self.every_n_validations, self.validations = every_n_validations, 0
        self.is_due = False
        self.hooks = ExitStack()
        self.steps: list[float] = []
        self.curves: list[list[dict[str, Any]]] = []

    def start_recording(self, module: LightningModule) -> None:
        """Record the learned steps of the model until ``self.hooks`` is closed."""
        self.hooks.close()
        recorder = iterations.record_learned_steps(module.get_submodule("model"))
        self.steps = self.hooks.enter_context(recorder)

    def add_curve(self, module: LightningModule, out: Registration, pair: Pair) -> None:
        """Add the energy curve of a case, unless it has a single field."""
        steps, self.steps[:] = list(self.steps), []
        if len(out.fields) < 2:
            return
        measure = self.measure or iterations.find_image_energy(module)
        rows = iterations.compute_energy_curve(pair, out.fields, measure)
        case = {"method": module.name, "case": pair["name"][0]}
        self.curves.append([case | row for row in iterations.add_learned_steps(rows, steps)])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.curves = []
        self.is_due = self.validations % self.every_n_validations == 0
        self.validations += 1
        if self.is_due:
            self.start_recording(pl_module)

    def on_validation_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        if self.is_due:
            self.add_curve(module, outputs["registration"], pair)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks.close()
        rows = list(chain(*gather_interleaved(self.curves)))
        writer = get_tensorboard(trainer)
        if rows and writer:
            figure = iterations.plot_energy_curves(iterations.average_energy_curves(rows))
            writer.add_figure("val/energy", figure, trainer.global_step)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start_recording(pl_module)

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, index: int
    ) -> None:
        out = outputs["registration"]
        self.add_curve(module, out, pair)
        if index < self.num_pictures and len(out.fields) > 1:
            path = self.folder / "pictures" / f"{make_file_name(pair['name'][0])}_iterations.png"
            write_figure(path, panels.draw_iterations(pair, out))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks.close()
        rows = list(chain(*gather_interleaved(self.curves)))
        if rows and trainer.is_global_zero:
            curve = iterations.average_energy_curves(rows)
            figure = iterations.plot_energy_curves(curve)
            write_text(self.folder / "energy_cases.csv", pd.DataFrame(rows).to_csv(index=False))
            write_text(self.folder / "energy.csv", curve.to_csv(index=False))
            write_figure(self.folder / "energy.png", figure, figure.dpi)
