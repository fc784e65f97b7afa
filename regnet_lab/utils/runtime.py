"""What the three commands share: one sentence for a user's mistake, run folders, resuming.

Imports nothing heavy, so that ``--help`` is quick.
"""

import logging
import warnings

from omegaconf import DictConfig

from regnet_lab.utils.distributed import first


def quieten() -> None:
    """Let Lightning speak only to warn."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's, of its own code


def prepare(cfg: DictConfig) -> None:
    """Seed everything, set the CPU threads, and let one process speak for all."""
    import torch
    from pytorch_lightning import seed_everything

    quieten()
    if not first():
        logging.getLogger().setLevel(logging.WARNING)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
