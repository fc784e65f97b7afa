"""Whether two configurations say the same, and all processes of a job have the same one."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from regnet_lab.errors import CommonError
from regnet_lab.utils.distributed import everyone

PLACES = ("run_dir", "sweep_dir", "resume")  # where a run lies, which does not change what it does


def settings(cfg: DictConfig) -> dict[str, str]:
    """What a run does: every value of its resolved configuration by its dotted name, its folder
    being called ".".
    """
    text = OmegaConf.to_yaml(cfg, resolve=True).replace(str(cfg.folder), ".")
    plain = OmegaConf.to_container(OmegaConf.create(text))
    found = leaves(plain)
    return {name: value for name, value in found.items() if name not in PLACES}


def leaves(node: Any, name: str = "") -> dict[str, str]:
    """The values of nested mappings as text."""
    if not isinstance(node, dict) or not node:
        return {name: str(node)}
    below = (leaves(value, f"{name}.{key}".lstrip(".")) for key, value in node.items())
    return {k: v for part in below for k, v in part.items()}


def difference(one: dict[str, str], other: dict[str, str]) -> str | None:
    """Of the settings that differ the one with the shortest name, from which others may follow,
    such as ``optim.lr: 0.1, not 0.2``; None if none does.
    """
    values = {name: [s.get(name, "absent") for s in (one, other)] for name in {**one, **other}}
    unlike = [name for name, (here, there) in values.items() if here != there]
    if not unlike:
        return None
    name = min(unlike, key=len)
    return f"{name}: {values[name][0]}, not {values[name][1]}"


class Agreement(Callback):
    """Refuse to begin unless all processes have the same configuration and folder, and can share
    what the model normalises by.

    Raises:
        CommonError: They have not, or cannot.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.mine = {"folder": str(cfg.folder), **settings(cfg)}
        self.shares_statistics = cfg.trainer.get("sync_batchnorm", False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        first, *others = everyone(self.mine)
        for rank, theirs in enumerate(others, 1):
            if apart := difference(theirs, first):
                raise CommonError(
                    f"Process {rank} has another configuration than process 0 ({apart}): start all "
                    "of them with the same command and values."
                )
        normalised = any(isinstance(m, _BatchNorm) for m in pl_module.modules())
        on_cpu = trainer.strategy.root_device.type == "cpu"
        if others and normalised and on_cpu and self.shares_statistics and stage == "fit":
            raise CommonError(
                "This model has batch normalisation, whose statistics several processes share on "
                "GPUs only: set trainer.accelerator=gpu or trainer.devices=1, or "
                "trainer.sync_batchnorm=false to let each process normalise by its own batch."
            )
