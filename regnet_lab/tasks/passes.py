"""Does it help to register again what a model left over?"""

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from regnet_lab.data.module import PairModule
from regnet_lab.models import Repeated
from regnet_lab.module import RegistrationModule
from regnet_lab.pair import Pair, registered
from regnet_lab.profile import Profile


class EveryPass(LightningModule):
    """Judge a pair without registration, after every pass, and where the passes stop themselves."""

    def __init__(self, module: RegistrationModule, repeated: Repeated) -> None:
        super().__init__()
        self.module, self.repeated = module, repeated

    def test_step(self, pair: Pair, index: int) -> dict[str, Any]:
        images = pair["fixed"], pair["moving"]
        records = self.module.test_step(pair, index)["records"]
        for k, (fields, _) in zip(
            range(1, self.repeated.times + 1), self.repeated.passes(*images), strict=False
        ):
            if k > 1:
                score = self.module.score(pair, registered(pair, fields).displacement)
                records.append(
                    {"case": pair["name"][0], "method": f"{self.module.name} x {k}"} | score
                )
        with Profile(self.device) as profile:
            out = registered(pair, self.repeated(*images))
        own = {"case": pair["name"][0], "method": f"{self.module.name} until it stops"}
        cost = {"seconds": profile.seconds, "peak_mb": profile.peak_mb}
        records.append(own | cost | self.module.score(pair, out.displacement))
        return {"records": records, "registration": out}


class Passes:
    """Judge every pair after 1, 2, ... passes of :class:`regnet_lab.models.Repeated`.

    Args:
        times, measure, together: As there; pairs come one at a time, so each stops on its own.
    """

    def __init__(self, **repeated: Any) -> None:
        self.repeated = repeated

    def run(self, trainer: Trainer, module: RegistrationModule, data: PairModule) -> None:
        trainer.test(EveryPass(module, Repeated(module.model, **self.repeated)), data, verbose=False)
