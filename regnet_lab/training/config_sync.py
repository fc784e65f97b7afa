"""Comparison of resolved configurations, between runs and between the processes of a job."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from regnet_lab.errors import CommonError
from regnet_lab.utils.distributed import all_gather

LOCATION_KEYS = ("run_dir", "sweep_dir", "resume")  # say where a run is stored, not what it does


def flatten_settings(cfg: DictConfig) -> dict[str, str]:
    """Return the values of a resolved configuration by their dotted names.

    Location keys are left out, and the run directory reads ".", so that equal runs in different
    places have equal settings.
    """
    text = OmegaConf.to_yaml(cfg, resolve=True).replace(str(cfg.output_dir), ".")
    values = flatten(OmegaConf.to_container(OmegaConf.create(text)))
    return {name: value for name, value in values.items() if name not in LOCATION_KEYS}


def flatten(node: Any, prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings as text, by their dotted names.

    >>> flatten({"training_optimizer": {"lr": 0.1}, "seed": 0})
    {'training_optimizer.lr': '0.1', 'seed': '0'}
    """
    if not isinstance(node, dict) or not node:
        return {prefix: str(node)}
    children = (flatten(value, f"{prefix}.{key}".lstrip(".")) for key, value in node.items())
    return {name: value for child in children for name, value in child.items()}


def describe_difference(settings: dict[str, str], reference: dict[str, str]) -> str | None:
    """Describe the differing setting with the shortest name, as others may follow from it.

    >>> describe_difference({"training_optimizer.lr": "0.1"}, {"training_optimizer.lr": "0.2"})
    'training_optimizer.lr: 0.1, not 0.2'

    Returns:
        None if all settings are equal.
    """
    differing = [k for k in settings | reference if settings.get(k) != reference.get(k)]
    if not differing:
        return None
    name = min(differing, key=len)
    return f"{name}: {settings.get(name, 'absent')}, not {reference.get(name, 'absent')}"


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
