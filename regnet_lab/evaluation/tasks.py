"""Judge every pair of a split."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from regnet_lab.data.datamodule import PairModule
from regnet_lab.errors import UserError
from regnet_lab.models import Repeated
from regnet_lab.ops.pairs import registered
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair, Registration, need
from regnet_lab.utils.profiling import Profile
from regnet_lab.visualization import dirvnet, dirvnet_experts


class Judge:
    """Register and score every pair; the callbacks write the tables and the pictures."""

    def run(self, trainer: Trainer, module: RegistrationModule, data: PairModule) -> None:
        trainer.test(module, data, verbose=False)


Measure = Callable[[Tensor, Tensor], Tensor]


class EveryPass(LightningModule):
    """Judge a pair without registration, after every pass, and where the passes stop themselves."""

    def __init__(self, module: RegistrationModule, repeated: Repeated) -> None:
        super().__init__()
        self.module, self.model, self.name = module, repeated, module.name

    def forward(self, pair: Pair) -> Registration:
        return registered(pair, self.model(pair["fixed"], pair["moving"]))

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        name, records = self.name, self.module.test_step(pair, index)["records"]
        passes = enumerate(self.model.passes(pair["fixed"], pair["moving"]), 1)
        for k, (fields, _) in islice(passes, 1, self.model.times):
            score = self.module.score(pair, registered(pair, fields).displacement)
            records.append({"case": pair["name"][0], "method": f"{name} x {k}"} | score)
        with Profile(self.device) as profile:
            out = self(pair)
        stopped = {"case": pair["name"][0], "method": f"{name} until it stops"}
        cost = {"seconds": profile.seconds, "peak_mb": profile.peak_mb}
        records.append(stopped | cost | self.module.score(pair, out.displacement))
        return {"records": records, "registration": out}


class Passes:
    """Judge every pair after 1, 2, ... passes of :class:`regnet_lab.models.Repeated`.

    Args:
        times: Most passes.
        measure: What must not rise; pairs come one at a time, so each stops on its own.
    """

    def __init__(self, times: int = 15, measure: Measure | None = None) -> None:
        self.times, self.measure = times, measure

    def run(self, trainer: Trainer, module: RegistrationModule, data: PairModule) -> None:
        repeated = Repeated(module.model, self.times, self.measure)
        trainer.test(EveryPass(module, repeated), data, verbose=False)


OPTIMUM = "optimum"


class BesideOptimum(LightningModule):
    """Judge a pair without registration, with it, and with the best field the model can represent.

    Raises:
        UserError: No part of the model says which fields it can represent.
    """

    def __init__(self, module: RegistrationModule) -> None:
        super().__init__()
        able = [part for part in module.model.modules() if hasattr(part, "representable")]
        if not able:
            raise UserError(
                f"{module.name} does not say which fields it can represent: task=optimum is for "
                "models of control points, such as dirvnet."
            )
        self.module, self.part = module, able[0]
        self.model, self.name = module.model, module.name  # what callbacks ask for
        self.errors: dict[str, list[float]] = {}

    def forward(self, pair: Pair) -> Registration:
        return self.module(pair)

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        best = self.part.representable(need(pair, "displacement", self))  # type: ignore[operator]
        answer = self.module.test_step(pair, index)
        case = {"case": pair["name"][0], "method": OPTIMUM}
        answer["records"].insert(-1, case | self.module.score(pair, best))  # own answer last
        for record in answer["records"]:
            if "epe_vox" not in record:
                raise UserError("task=optimum compares endpoint errors: use metrics=strict.")
            self.errors.setdefault(record["method"], []).append(record["epe_vox"])
        return answer

    def ratio(self) -> str:
        """Endpoint errors and how they compare, in a sentence."""
        still, own, best = (np.mean(self.errors[key]) for key in ("identity", self.name, OPTIMUM))
        return (
            f"Endpoint error (voxels): identity {still:.4f}, {self.name} {own:.4f}, "
            f"optimum {best:.4f}; {self.name} / optimum = {own / best:.3f}"
        )


class Optimum:
    """Judge every pair beside the least-squares fit of the model's control points to the truth."""

    def run(self, trainer: Trainer, module: RegistrationModule, data: PairModule) -> None:
        beside = BesideOptimum(module)
        trainer.test(beside, data, verbose=False)
        Console().print(beside.ratio(), soft_wrap=True, highlight=False)


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
    if not module.losses or not dirvnet_experts.levels(module):
        return {}
    module.train()
    out = module(pair)
    torch.stack([loss.weight * loss(pair, out) for loss in module.losses.values()]).sum().backward()
    return dirvnet_experts.gradients(module)
