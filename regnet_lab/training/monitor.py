"""Check, before training, that the metric which selects the best checkpoint will be computed."""

import torch
from torch.utils.data import default_collate

from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.errors import UserError
from regnet_lab.metrics import score_validation
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair


def list_validation_metrics(module: RegistrationModule, pair: Pair) -> list[str]:
    """Return the names of all numbers that are logged after validating a pair (batched)."""
    fixed = pair["fixed"]
    metrics = score_validation(pair, torch.zeros(1, fixed.ndim - 2, *fixed.shape[2:]))
    return [f"val/{name}" for name in ("loss", *module.losses, *metrics)]


def check_monitor(monitor: str, module: RegistrationModule, data: PairDataModule) -> None:
    """Raise a UserError if no validation pair gives the monitored metric.

    The first pair is read; others are read only if it does not give the metric, which a data set
    with labels or landmarks of some pairs may do.
    """
    if not monitor.startswith("val/"):
        return
    names: dict[str, None] = {}
    pairs = data.make_dataset("val")
    for index in range(len(pairs)):
        names |= dict.fromkeys(list_validation_metrics(module, default_collate([pairs[index]])))
        if monitor in names:
            return
    raise UserError(f"monitor={monitor} is not computed on this data; choose {', '.join(names)}.")
