"""Judge an unrolled model with other numbers of iterations than it was trained with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from regnet_lab.errors import UserError
from regnet_lab.training.callbacks.base import EachCase
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.distributed import gathered
from regnet_lab.visualization import iterations
from regnet_lab.visualization.iterations import step_curve, step_figure


@contextmanager
def unrolled(model: nn.Module, factor: float, halvings: int | None = None) -> Iterator[None]:
    """Within the block, every model with an ``unroll`` runs ``factor`` times its iterations, and
    halves steps as often as ``halvings`` says, if it does.

    Raises:
        UserError: There is no such model.
    """
    found = [m for m in model.modules() if hasattr(m, "unroll")]
    if not found:
        raise UserError("task=steps: this model does not iterate; choose a run of GraDIRN.")
    before = [(m.unroll, m.halvings) for m in found]
    try:
        for m, (_, own) in zip(found, before, strict=True):
            m.unroll = factor  # type: ignore[assignment]
            m.halvings = own if halvings is None else halvings  # type: ignore[assignment]
        yield
    finally:
        for m, (unroll, own) in zip(found, before, strict=True):
            m.unroll, m.halvings = unroll, own


class Outcomes(EachCase):
    """The scores of every case, its iterations and the energy they end with."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def judged(self, module: LightningModule, outputs: Any, pair: Pair, place: int) -> None:
        fields = outputs["registration"].fields
        *_, last = iterations.energies(pair, fields[-1:], iterations.own_energy(module))
        scores = outputs["records"][-1]
        self.rows.append({**scores, "iterations": len(fields), "energy": last["energy"]})


class Steps:
    """Judge every pair with each of ``factors`` times the iterations.

    The tables of the callbacks get a method for every factor; ``steps.csv`` and ``steps.png``
    show the scores and the energy of the last field against the number of iterations, and are
    written anew after each factor.

    Args:
        folder: Where the curve goes.
        factors: Of the iterations of every level, such as 0.5 or 4.
        halvings: Of a step that does not lower the energy; null: those of the model itself.
    """

    def __init__(
        self, folder: str, factors: Sequence[float] = (1, 2, 3, 4), halvings: int | None = None
    ) -> None:
        self.folder, self.factors, self.halvings = Path(folder), list(factors), halvings

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader) -> None:
        model, outcomes = module.name, Outcomes()
        trainer.callbacks.append(outcomes)  # type: ignore[attr-defined]
        for factor in self.factors:
            module.name = f"{model} x{factor:g}"
            with unrolled(module.model, factor, self.halvings):
                trainer.test(module, data, verbose=False)
            rows = gathered(outcomes.rows)
            if trainer.is_global_zero:
                self.write(step_curve(rows, model))
        module.name = model

    def write(self, curve: pd.DataFrame) -> None:
        """The curve as a table and a picture: the first score known, and what stands beside it."""
        write_text(self.folder / "steps.csv", curve.to_csv(index=False))
        step_figure(curve).savefig(self.folder / "steps.png")
