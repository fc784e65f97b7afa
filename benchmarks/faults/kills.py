"""Processes that are ended in training, in evaluation, while checkpoints or a cache are written.

Each fault gives whether one trial of it lost anything.
"""

import json
import random
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.faults.processes import (
    EVALUATE,
    JUDGED,
    SMALL,
    TRAIN,
    Reference,
    command,
    disturbed,
    ended,
    forked,
    have_same_weights,
    numbers,
)
from regnet_lab.config.checkpoints import read_weights
from regnet_lab.data.preprocessing.cache import FolderCache, read_arrays
from regnet_lab.training.callbacks import AtomicCheckpointIO


def can_continue(run: Path, options: list[str], whole: Reference) -> bool:
    """Whether every checkpoint is whole, and the run ends as the one that was not disturbed."""
    checkpoints = list(run.glob("checkpoints/*.ckpt"))
    for path in checkpoints:
        read_weights(path)
    arguments = [f"resume={run}"] if run / "checkpoints/last.ckpt" in checkpoints else options
    if ended(forked(partial(command, TRAIN, *arguments), run.parent / "log.txt")):
        return False
    pairs = ((run / "checkpoints" / path.name, path) for path in (whole.last, whole.best))
    return all(have_same_weights(checkpoint, expected) for checkpoint, expected in pairs)


def kill_in_training(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """Kill, look at every checkpoint, continue, compare with the run that was not killed."""
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run", "overwrite=true"]
    pid = forked(partial(command, TRAIN, *options), folder / "log.txt")
    disturbed(pid, rng.uniform(0.3, 0.95) * whole.training)
    return not can_continue(folder / "run", options, whole)


def interrupt_in_training(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """Interrupt or terminate where no checkpoint is due; it must be said how to go on."""
    options = [*SMALL, "callbacks.last.every_n_steps=1000"]
    options += [f"experiment_root={folder}", "run_dir=run", "overwrite=true"]
    pid = forked(partial(command, TRAIN, *options), folder / "log.txt")
    sign = rng.choice([signal.SIGINT, signal.SIGTERM])
    code = disturbed(pid, rng.uniform(0.3, 0.95) * whole.training, sign)
    output = (folder / "log.txt").read_text("utf-8")
    stopped = "Interrupted" in output and code != 0  # else too early, or in the last validation
    if stopped and ("Traceback" in output or "resume=" not in output):
        return True
    return not can_continue(folder / "run", options, whole)


def readable(path: Path) -> object:
    """Read a file to its end; false if that cannot be."""
    if path.suffix == ".png":
        return path.read_bytes().endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".npz":
        with np.load(path) as file:
            return [file[name] for name in file.files]
    reader = {".json": lambda p: json.loads(p.read_text("utf-8")), ".csv": pd.read_csv}
    reader.get(path.suffix, Path.read_bytes)(path)
    return True


def are_files_complete(folder: Path) -> bool:
    """Whether everything with its final name can be read to the end."""
    paths = [path for path in folder.rglob("*.*") if not path.name.startswith(".")]
    return all(readable(path) for path in paths)


def kill_in_evaluation(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """Kill, read every file there is, judge again, compare."""
    arguments = [f"run={whole.run}", *JUDGED, f"hydra.run.dir={folder / 'judged'}"]
    pid = forked(partial(command, EVALUATE, *arguments), folder / "log.txt")
    disturbed(pid, rng.uniform(0.2, 0.95) * whole.judging)
    if not are_files_complete(folder / "judged"):
        return True
    if ended(forked(partial(command, EVALUATE, *arguments), folder / "log.txt")):
        return True
    return not numbers(folder / "judged" / "cases.csv").equals(whole.cases)


def constant(number: int, size: int = 300000) -> dict:
    """A checkpoint that holds one number."""
    return {"state_dict": {"a": torch.full((size,), float(number))}}


def save_forever(path: Path) -> None:
    """Write one checkpoint after another."""
    for number in range(10**9):
        AtomicCheckpointIO().save_checkpoint(constant(number), path)


def kill_in_checkpoint(rng: random.Random, folder: Path, _: Reference) -> bool:
    """Kill while checkpoints are written; the one there must be one of them, whole."""
    path = folder / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(constant(0), path)
    disturbed(forked(partial(save_forever, path), folder / "log.txt"), rng.uniform(0, 0.3))
    return len(read_weights(path)["a"].unique()) != 1


def entry(number: int) -> dict:
    """An entry of a cache that holds one number."""
    return {"": np.full(100000, number), "spacing": np.ones(2)}


def fill(folder: Path) -> None:
    """Write one entry of a cache after another."""
    cache = FolderCache(folder)
    for number in range(10**9):
        cache.get_or_create(str(number % 50), partial(entry, number % 50))
        if number % 50 == 49:
            for path in folder.glob("*.arrays"):
                path.unlink()


def kill_in_cache(rng: random.Random, folder: Path, _: Reference) -> bool:
    """Kill while a cache is filled; every entry must be whole and of its key."""
    cache = folder / "cache"
    disturbed(forked(partial(fill, cache), folder / "log.txt"), rng.uniform(0, 0.3))
    return any(
        (read_arrays(path, True)[""] != int(path.stem)).any() for path in cache.glob("*.arrays")
    )
