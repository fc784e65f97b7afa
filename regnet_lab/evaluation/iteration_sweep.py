"""Score an unrolled model with other numbers of iterations than it was trained with."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from regnet_lab.errors import UserError
from regnet_lab.models import GraDIRN
from regnet_lab.training.callbacks.base import CaseCallback
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.distributed import gather_interleaved
from regnet_lab.visualization import iterations


@contextmanager
def override_iterations(
    model: nn.Module, factor: float, line_search_steps: int | None = None
) -> Iterator[None]:
    """Run every GraDIRN in a model with ``factor`` times its iterations within a ``with`` block."""
    iterative = [part for part in model.modules() if isinstance(part, GraDIRN)]
    if not iterative:
        raise UserError(
            "task=iteration_sweep: this model does not iterate; choose a run of GraDIRN."
        )
    with ExitStack() as stack:
        for part in iterative:
            stack.enter_context(part.override_iterations(factor, line_search_steps))
        yield


class IterationRecorder(CaseCallback):
    """Record the scores of every case, its number of iterations and its final energy."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_test_case_end(
        self, module: LightningModule, outputs: Any, pair: Pair, place: int
    ) -> None:
        fields = outputs["registration"].fields
        *_, last = iterations.compute_energy_curve(
            pair, fields[-1:], iterations.find_image_energy(module)
        )
        scores = outputs["records"][-1]
        self.rows.append({**scores, "iterations": len(fields), "energy": last["energy"]})


class IterationSweepTask:
    """Score every pair with multiples of the trained number of iterations.

    The tables of the callbacks get a method for every factor.  ``iteration_sweep.csv`` and ``.png``
    show the scores and the energy of the last field against the number of iterations; they are
    updated after each factor.

    Args:
        folder: Folder for the curve.
        iteration_factors: Factors on the iterations of every level, such as 0.5 or 4.
        line_search_steps: Most halvings of a step that does not lower the energy; null: the
            model's own.
    """

    def __init__(
        self,
        folder: str,
        iteration_factors: Sequence[float] = (1, 2, 3, 4),
        line_search_steps: int | None = None,
    ) -> None:
        self.folder, self.iteration_factors = Path(folder), list(iteration_factors)
        self.line_search_steps = line_search_steps

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader) -> None:
        """Score the split once for each factor and write the curve."""
        model_name, recorder = module.name, IterationRecorder()
        trainer.callbacks.append(recorder)  # type: ignore[attr-defined]
        for factor in self.iteration_factors:
            module.name = f"{model_name} x{factor:g}"
            with override_iterations(module.model, factor, self.line_search_steps):
                trainer.test(module, data, verbose=False)
            rows = gather_interleaved(recorder.rows)
            if trainer.is_global_zero:
                curve = iterations.summarize_iteration_sweep(rows, model_name)
                write_text(self.folder / "iteration_sweep.csv", curve.to_csv(index=False))
                iterations.plot_iteration_sweep(curve).savefig(self.folder / "iteration_sweep.png")
        module.name = model_name
