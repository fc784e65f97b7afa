"""Judge every pair of a split."""

from pytorch_lightning import Trainer

from regnet_lab.data.module import PairModule
from regnet_lab.module import RegistrationModule


class Judge:
    """Register and score every pair; the callbacks write the tables and the pictures."""

    def run(self, trainer: Trainer, module: RegistrationModule, data: PairModule) -> None:
        trainer.test(module, data, verbose=False)
