"""How near does a model come to the best field it can represent?"""

from typing import Any

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from rich.console import Console

from regnet_lab.data.module import PairModule
from regnet_lab.errors import UserError
from regnet_lab.module import RegistrationModule
from regnet_lab.pair import Pair, Registration, need

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
