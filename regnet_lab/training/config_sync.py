"""Comparison of the configurations of all processes of a job."""

from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from regnet_lab.config.settings import describe_difference, flatten_settings
from regnet_lab.errors import CommonError
from regnet_lab.utils.distributed import all_gather


class ConfigConsistencyCheck(Callback):
    """Check that all processes have the same configuration and can share batch statistics.

    Raises:
        CommonError: Configurations or run directories differ, or batch normalization is to be
            synchronized on CPUs, which PyTorch cannot do.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.settings = {"output_dir": str(cfg.output_dir), **flatten_settings(cfg)}
        self.sync_batchnorm = cfg.trainer.get("sync_batchnorm", False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        reference, *others = all_gather(self.settings)
        for rank, settings in enumerate(others, 1):
            if difference := describe_difference(settings, reference):
                raise CommonError(
                    f"Process {rank} has another configuration than process 0 ({difference}): "
                    "start all processes with the same command and values."
                )
        normalizes = any(isinstance(m, _BatchNorm) for m in pl_module.modules())
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if others and normalizes and on_cpu and self.sync_batchnorm and stage == "fit":
            raise CommonError(
                "Batch normalization of several processes can be synchronized on GPUs only: set "
                "trainer.accelerator=gpu or trainer.devices=1, or trainer.sync_batchnorm=false to "
                "let each process normalize by its own batch."
            )
