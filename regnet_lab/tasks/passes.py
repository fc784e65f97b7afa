"""Does it help to register again what a model left over?"""

from collections.abc import Callable
from itertools import islice
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from regnet_lab.data.module import PairModule
from regnet_lab.models import Repeated
from regnet_lab.module import RegistrationModule
from regnet_lab.pair import Pair, Registration, registered
from regnet_lab.profile import Profile

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
