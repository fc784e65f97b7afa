"""Configure random seeds, threads and logging at the start of a command."""

import logging
import warnings

from omegaconf import DictConfig

from regnet_lab.utils.distributed import is_rank_zero


def silence_lightning() -> None:
    """Show only warnings of Lightning."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # raised by Lightning's own code


def configure_runtime(cfg: DictConfig) -> None:
    """Set all random seeds and the number of CPU threads; let only rank 0 log information."""
    import torch
    from pytorch_lightning import seed_everything

    silence_lightning()
    if not is_rank_zero():
        logging.getLogger().setLevel(logging.WARNING)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
