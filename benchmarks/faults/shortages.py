"""No room on the disk, not enough memory.

Each fault gives whether one trial of it lost anything.
"""

import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults.kills import constant
from benchmarks.faults.processes import (
    SMALL,
    TRAIN,
    Reference,
    command,
    ended,
    forked,
    have_same_weights,
    limited,
)
from regnet_lab.config.checkpoints import read_weights
from regnet_lab.errors import UserError
from regnet_lab.training.callbacks import AtomicCheckpointIO
from regnet_lab.training.module import RegistrationModule


def overfull(path: Path) -> None:
    """Save where there is no room; exit code 2 if that is said."""
    try:
        AtomicCheckpointIO().save_checkpoint(constant(2), path)
    except UserError as error:
        sys.exit(2 if "make room and continue" in str(error) else 1)


def disk_full_in_checkpoint(rng: random.Random, folder: Path, _: Reference) -> bool:
    """The checkpoint before it must stay, and nothing else."""
    path = folder / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(constant(1), path)
    task = partial(limited, rng.randrange(path.stat().st_size), partial(overfull, path))
    code = ended(forked(task, folder / "log.txt"))
    sound = bool((read_weights(path)["a"] == 1).all())
    return not (code == 2 and sound and [p.name for p in path.parent.iterdir()] == ["last.ckpt"])


def disk_full_in_training(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """A run that is resumed on a full disk keeps its checkpoint, and goes on when there is room."""
    options = [*SMALL[:-2], "threads=1", "callbacks.last.every_n_steps=3"]
    options += [
        f"experiment_root={folder}",
        "run_dir=run",
        "overwrite=true",
        "trainer.max_epochs=1",
    ]
    if ended(forked(partial(command, TRAIN, *options), folder / "first.txt")):
        return True
    last, log = folder / "run" / "checkpoints" / "last.ckpt", folder / "log.txt"
    before = last.read_bytes()
    again = partial(command, TRAIN, f"resume={folder / 'run'}", "trainer.max_epochs=3")
    code = ended(forked(partial(limited, rng.randrange(60000, len(before)), again), log))
    output = log.read_text("utf-8")
    if (
        code != 2
        or "Traceback" in output
        or "make room" not in output
        or last.read_bytes() != before
    ):
        return True
    return bool(ended(forked(again, log))) or not have_same_weights(last, whole.last)


def failing(step: int, error: Callable[[], BaseException], *arguments: str) -> None:
    """Train until a step that fails."""
    usual = RegistrationModule.training_step

    def training_step(self: RegistrationModule, *step_arguments: object) -> object:
        if self.global_step == step:
            raise error()
        return usual(self, *step_arguments)  # type: ignore[arg-type]

    RegistrationModule.training_step = training_step  # type: ignore[method-assign,assignment]
    command(TRAIN, *arguments)


def out_of_memory(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """One sentence names the setting; the run goes on from its last checkpoint."""
    log, run = folder / "log.txt", folder / "run"
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run", "overwrite=true"]
    error = partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 9 GiB.")
    code = ended(forked(partial(failing, rng.randrange(1, 17), error, *options), log))
    output = log.read_text("utf-8")
    if code != 2 or "Traceback" in output or "lower data.batch_size, now 2" not in output:
        return True
    if ended(forked(partial(command, TRAIN, f"resume={run}"), log)):
        return True
    return not have_same_weights(run / "checkpoints/last.ckpt", whole.last)
