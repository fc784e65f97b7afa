"""Define the tasks of ``evaluate.py`` that score or draw every pair of a split."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from regnet_lab.errors import UserError
from regnet_lab.losses import compute_objective
from regnet_lab.metrics.tables import IDENTITY
from regnet_lab.models import DIRVNet, IterativeRefinement
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair, PairDataset, Registration, require
from regnet_lab.utils.profiling import Profile
from regnet_lab.utils.text import print_line
from regnet_lab.visualization import dirvnet, field_of_experts

StoppingMeasure = Callable[[Tensor, Tensor], Tensor]
OPTIMUM = "optimum"  # method name of the best fit of control points


class ScoreTask:
    """Register and score every pair; the callbacks write tables and figures."""

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Score all pairs."""
        trainer.test(module, data, verbose=False)


class PassEvaluator(LightningModule):
    """Scores a pair before registration, after every pass, and where the passes stop."""

    def __init__(self, module: RegistrationModule, model: IterativeRefinement) -> None:
        super().__init__()
        self.module, self.model, self.name = module, model, module.name

    def forward(self, pair: Pair) -> Registration:
        return apply_displacement(pair, self.model(pair["fixed"], pair["moving"]))

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        name, records = self.name, self.module.test_step(pair, index)["records"]
        passes = enumerate(self.model.iterate_passes(pair["fixed"], pair["moving"]), 1)
        for k, (fields, _) in islice(passes, 1, self.model.max_passes):
            scores = self.module.score(pair, apply_displacement(pair, fields).displacement)
            records.append({"case": pair["name"][0], "method": f"{name} x {k}"} | scores)
        with Profile(self.device) as profile:
            out = self(pair)
        case = {"case": pair["name"][0], "method": f"{name} until it stops"}
        cost = {"seconds": profile.seconds, "peak_mb": profile.peak_mb}
        records.append(case | cost | self.module.score(pair, out.displacement))
        return {"records": records, "registration": out}


class IterativeRefinementTask:
    """Score every pair after 1, 2, ... passes of :class:`regnet_lab.models.IterativeRefinement`.

    Args:
        max_passes: Largest number of passes.
        stopping_measure: Dissimilarity of two images that must not rise from pass to pass; pairs
            are registered one at a time, so each stops on its own.
    """

    def __init__(
        self, max_passes: int = 15, stopping_measure: StoppingMeasure | None = None
    ) -> None:
        self.max_passes, self.stopping_measure = max_passes, stopping_measure

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Score all pairs."""
        model = IterativeRefinement(module.model, self.max_passes, self.stopping_measure)
        trainer.test(PassEvaluator(module, model), data, verbose=False)


class ControlPointFitEvaluator(LightningModule):
    """Scores a pair before registration, after it, and with the best field of control points."""

    def __init__(self, module: RegistrationModule) -> None:
        super().__init__()
        networks = [part for part in module.model.modules() if isinstance(part, DIRVNet)]
        if not networks:
            raise UserError(
                f"{module.name} has no control points: task=control_point_fit is for models such "
                "as dirvnet."
            )
        self.module, self.network = module, networks[0]
        self.model, self.name = module.model, module.name  # read by callbacks
        self.endpoint_errors: dict[str, list[float]] = {}

    def forward(self, pair: Pair) -> Registration:
        return self.module(pair)

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        best = self.network.project_field(require(pair, "displacement", self))
        outputs = self.module.test_step(pair, index)
        case = {"case": pair["name"][0], "method": OPTIMUM}
        # The callbacks take the last record for that of the registration.
        outputs["records"].insert(-1, case | self.module.score(pair, best))
        for record in outputs["records"]:
            if "epe_vox" not in record:
                raise UserError(
                    "task=control_point_fit compares endpoint errors: use metrics=full."
                )
            self.endpoint_errors.setdefault(record["method"], []).append(record["epe_vox"])
        return outputs

    def format_errors(self) -> str:
        """Summarize the mean endpoint errors in a sentence."""
        methods = (IDENTITY, self.name, OPTIMUM)
        identity, model, best = (np.mean(self.endpoint_errors[method]) for method in methods)
        return (
            f"Endpoint error (voxels): identity {identity:.4f}, {self.name} {model:.4f}, "
            f"optimum {best:.4f}; {self.name} / optimum = {model / best:.3f}"
        )


class ControlPointFitTask:
    """Score every pair beside the least-squares fit of the control points to the true field."""

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Score all pairs and print the mean endpoint errors."""
        evaluator = ControlPointFitEvaluator(module)
        trainer.test(evaluator, data, verbose=False)
        Console().print(evaluator.format_errors(), markup=False, soft_wrap=True, highlight=False)


class DIRVNetFiguresTask:
    """Draw the first pairs of the split and what a DIRV-Net learned, a PNG for each group.

    Args:
        folder: Folder for the figures.
        levels_csv: Path of the run's ``levels.csv``, which its callback wrote during training;
            without that file there is no figure of the training.
        num_cases: Number of pairs, all of one size.
    """

    def __init__(self, folder: str, levels_csv: str, num_cases: int = 8) -> None:
        self.folder, self.levels_csv, self.num_cases = Path(folder), Path(levels_csv), num_cases

    def run(self, trainer: Trainer, module: RegistrationModule, data: DataLoader[Pair]) -> None:
        """Draw and write the figures."""
        pair = dirvnet.collate_first_pairs(cast(PairDataset, data.dataset), self.num_cases)
        levels = self.levels_csv
        history = pd.read_csv(levels).to_dict("records") if levels.is_file() else []
        registration = dirvnet.register_without_grad(module, pair)
        gradients = compute_loss_gradients(module, pair)
        figures = dirvnet.draw_figures(module, pair, registration, gradients, history)
        self.folder.mkdir(parents=True, exist_ok=True)
        for tag, figure in figures.items():
            figure.savefig(self.folder / f"{tag.split('/')[-1]}.png")
        print_line(f"{len(figures)} figures in {self.folder}")


def compute_loss_gradients(module: RegistrationModule, pair: Pair) -> dict[str, Tensor]:
    """Compute gradients of the training objective on a batch; empty for a model without a run."""
    if not module.losses or not field_of_experts.find_levels(module):
        return {}
    module.train()
    compute_objective(module.losses, pair, module(pair))["loss"].backward()
    return field_of_experts.collect_gradients(module)
