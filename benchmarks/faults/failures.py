"""A loss that is not finite, a process that loads data and dies.

Each fault gives whether one trial of it lost anything.
"""

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults.processes import SMALL, TRAIN, Reference, command, ended, forked
from regnet_lab.config.checkpoints import read_weights
from regnet_lab.data.case import Case
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import CasePairs
from regnet_lab.errors import UserError
from regnet_lab.training.failures import translate_errors


def not_finite(rng: random.Random, folder: Path, _: Reference) -> bool:
    """Return whether the diverging batch was not saved or a checkpoint is not finite."""
    log, run = folder / "log.txt", folder / "run"
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run", "overwrite=true"]
    rate = f"training_optimizer.lr=1e{rng.randrange(18, 30)}"
    code = ended(forked(partial(command, TRAIN, *options, rate), log))
    batch = torch.load(run / "diverged.pt", weights_only=True)
    finite = all(
        torch.isfinite(value).all()
        for path in run.glob("checkpoints/*.ckpt")
        for value in read_weights(path).values()
    )
    return not (
        code == 2
        and finite
        and batch["pair"]["name"]
        and "training_optimizer.lr" in batch["reason"]
    )


def read_pair_or_exit(fixed: Case, moving: Case, dies: str = "", killed: int = 0) -> dict:
    """Return a pair; end the process at case ``dies``, by SIGKILL if ``killed`` is not zero."""
    if fixed.name == dies:
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)
    image = torch.zeros(1, 9, 11)
    return {"fixed": image, "moving": image, "spacing": torch.ones(2), "name": fixed.name}


def load(dies: str, killed: int, split: str) -> None:
    """Load pairs in two processes, of which one ends."""
    cases = [Case(f"{n}", Path(f"case{n}.nii.gz")) for n in range(12)]
    prepare = partial(read_pair_or_exit, dies=dies, killed=killed)
    pairs = CasePairs([(c, cases[0]) for c in cases], prepare)  # type: ignore
    module = PairDataModule(lambda split: pairs, num_workers=2)
    loader = module.train_dataloader() if split == "train" else module.val_dataloader()
    try:
        with translate_errors("", "go on"):
            list(loader)
    except UserError as error:
        sys.exit(2 if f"case{dies}.nii.gz" in str(error) else 1)


def dead_worker(rng: random.Random, folder: Path, _: Reference) -> bool:
    """The sentence must name the case that was read."""
    task = partial(load, str(rng.randrange(12)), rng.randrange(2), rng.choice(["train", "val"]))
    return ended(forked(task, folder / "log.txt")) != 2
