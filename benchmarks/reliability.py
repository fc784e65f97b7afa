"""Faults at random moments, and what was lost: ``python benchmarks/reliability.py [--times 1.0]``.

Commands run in forked copies of this process, which has everything imported.  A fault counts as
lost if a file half-written was taken for whole, a result differs from the undisturbed one by a bit,
what was there before is damaged, or the sentence that says what to do is missing.
"""

import argparse
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.disguises import disguises, told
from regnet_lab.callbacks import WholeCheckpoints
from regnet_lab.data.cache import FolderCache, read
from regnet_lab.data.cases import Case, CasePairs
from regnet_lab.data.module import PairModule
from regnet_lab.errors import UserError
from regnet_lab.mishaps import explained
from regnet_lab.module import RegistrationModule
from regnet_lab.weights import read_weights


def script(name: str) -> Callable[[], None]:
    """A command, telling mistakes in one sentence though it is not the only one imported."""
    os.environ["HYDRA_FULL_ERROR"] = ""
    return importlib.import_module(name).main


TRAIN, EVALUATE = script("train"), script("evaluate")
SMALL = [
    "ndim=2",
    "model=voxelmorph",
    "data.dataset.shape=32",
    "data.dataset.size=12",
    "data.batch_size=2",
    "trainer.limit_val_batches=2",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks.panel=null",
    "callbacks.last.every_n_steps=1",
    "threads=1",
]
JUDGED = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "threads=1", "pictures=2"]


def forked(task: Callable[[], object], log: Path) -> int:
    """Start a task in a copy of this process; its output goes into a file."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        task()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a copy; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(main: Callable[[], None], *arguments: str) -> None:
    """Run a command as from a shell."""
    sys.argv = ["reliability", *arguments]
    main()


def killed(pid: int, after: float) -> bool:
    """Kill a copy after some seconds; whether it was still running."""
    limit = time.monotonic() + after
    while time.monotonic() < limit:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return False
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    return True


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    a, b = read_weights(one), read_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Reference:
    """An undisturbed run and its evaluation, and how long they took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "whole"
        start = time.monotonic()
        self.do(TRAIN, *SMALL, f"experiment_root={folder}", "run_dir=whole")
        self.training = time.monotonic() - start
        start = time.monotonic()
        self.do(EVALUATE, f"run={self.run}", *JUDGED)
        self.judging = time.monotonic() - start
        self.last = self.run / "checkpoints" / "last.ckpt"
        self.cases = numbers(self.run / "evaluation" / "same" / "cases.csv")

    def do(self, main: Callable[[], None], *arguments: str) -> str:
        """Run a command to its end; what it printed."""
        log = self.folder / "log.txt"
        log.unlink(missing_ok=True)
        code = ended(forked(partial(command, main, *arguments), log))
        if code:
            raise RuntimeError(log.read_text("utf-8"))
        return log.read_text("utf-8")


def numbers(path: Path) -> pd.DataFrame:
    """A table of cases but for what it cost."""
    return pd.read_csv(path).drop(columns=["seconds", "peak_mb"], errors="ignore")


def kill_in_training(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """Kill, look at every checkpoint, continue, compare with the run that was not killed."""
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run"]
    pid = forked(partial(command, TRAIN, *options), folder / "log.txt")
    if not killed(pid, rng.uniform(0.3, 0.95) * whole.training):
        return False
    run = folder / "run"
    found = list(run.glob("checkpoints/*.ckpt"))
    for path in found:
        read_weights(path)
    arguments = [f"resume={run}"] if run / "checkpoints/last.ckpt" in found else options
    if ended(forked(partial(command, TRAIN, *arguments), folder / "log.txt")):
        return True
    return not same_weights(run / "checkpoints/last.ckpt", whole.last)


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


def whole_files(folder: Path) -> bool:
    """Whether everything with its final name can be read to the end."""
    found = [path for path in folder.rglob("*.*") if not path.name.startswith(".")]
    return all(readable(path) for path in found)


def kill_in_evaluation(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """Kill, read every file there is, judge again, compare."""
    arguments = [f"run={whole.run}", *JUDGED, f"hydra.run.dir={folder / 'judged'}"]
    pid = forked(partial(command, EVALUATE, *arguments), folder / "log.txt")
    killed(pid, rng.uniform(0.2, 0.95) * whole.judging)
    if not whole_files(folder / "judged"):
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
        WholeCheckpoints().save_checkpoint(constant(number), path)


def kill_in_checkpoint(rng: random.Random, folder: Path, _: Reference) -> bool:
    """Kill while checkpoints are written; the one there must be one of them, whole."""
    path = folder / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(constant(0), path)
    killed(forked(partial(save_forever, path), folder / "log.txt"), rng.uniform(0, 0.3))
    return len(read_weights(path)["a"].unique()) != 1


def entry(number: int) -> dict:
    """An entry of a cache that holds one number."""
    return {"": np.full(100000, number), "spacing": np.ones(2)}


def fill(folder: Path) -> None:
    """Write one entry of a cache after another."""
    cache = FolderCache(folder)
    for number in range(10**9):
        cache.get(str(number % 50), partial(entry, number % 50))
        if number % 50 == 49:
            for path in folder.glob("*.arrays"):
                path.unlink()


def kill_in_cache(rng: random.Random, folder: Path, _: Reference) -> bool:
    """Kill while a cache is filled; every entry must be whole and of its key."""
    kept = folder / "cache"
    killed(forked(partial(fill, kept), folder / "log.txt"), rng.uniform(0, 0.3))
    return any((read(path, True)[""] != int(path.stem)).any() for path in kept.glob("*.arrays"))


def limited(size: int, task: Callable[[], object]) -> None:
    """Do something while no file may become larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    task()


def overfull(path: Path) -> None:
    """Save where there is no room; exit code 2 if that is said."""
    try:
        WholeCheckpoints().save_checkpoint(constant(2), path)
    except UserError as error:
        sys.exit(2 if "make room and continue" in str(error) else 1)


def disk_full_in_checkpoint(rng: random.Random, folder: Path, _: Reference) -> bool:
    """The checkpoint before it must stay, and nothing else."""
    path = folder / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(constant(1), path)
    task = partial(limited, rng.randrange(path.stat().st_size), partial(overfull, path))
    code = ended(forked(task, folder / "log.txt"))
    sound = bool((read_weights(path)["a"] == 1).all())
    return not (code == 2 and sound and [p.name for p in path.parent.iterdir()] == ["last.ckpt"])


def disk_full_in_training(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """A run that is resumed on a full disk keeps its checkpoint, and goes on when there is room."""
    options = [*SMALL[:-2], "threads=1", "callbacks.last.every_n_steps=3"]
    options += [f"experiment_root={folder}", "run_dir=run", "trainer.max_epochs=1"]
    if ended(forked(partial(command, TRAIN, *options), folder / "first.txt")):
        return True
    last, log = folder / "run" / "checkpoints" / "last.ckpt", folder / "log.txt"
    before = last.read_bytes()
    again = partial(command, TRAIN, f"resume={folder / 'run'}", "trainer.max_epochs=3")
    code = ended(forked(partial(limited, rng.randrange(60000, len(before)), again), log))
    said = log.read_text("utf-8")
    if code != 2 or "Traceback" in said or "make room" not in said or last.read_bytes() != before:
        return True
    return bool(ended(forked(again, log))) or not same_weights(last, whole.last)


def failing(step: int, error: Callable[[], BaseException], *arguments: str) -> None:
    """Train until a step that fails."""
    usual = RegistrationModule.training_step

    def training_step(self: RegistrationModule, *given: object) -> object:
        if self.global_step == step:
            raise error()
        return usual(self, *given)  # type: ignore[arg-type]

    RegistrationModule.training_step = training_step  # type: ignore[method-assign,assignment]
    command(TRAIN, *arguments)


def out_of_memory(rng: random.Random, folder: Path, whole: Reference) -> bool:
    """One sentence names the setting; the run goes on from its last checkpoint."""
    log, run = folder / "log.txt", folder / "run"
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run"]
    error = partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 9 GiB.")
    code = ended(forked(partial(failing, rng.randrange(1, 17), error, *options), log))
    said = log.read_text("utf-8")
    if code != 2 or "Traceback" in said or "lower data.batch_size, now 2" not in said:
        return True
    if ended(forked(partial(command, TRAIN, f"resume={run}"), log)):
        return True
    return not same_weights(run / "checkpoints/last.ckpt", whole.last)


def not_finite(rng: random.Random, folder: Path, _: Reference) -> bool:
    """The batch is kept, and every checkpoint is finite."""
    log, run = folder / "log.txt", folder / "run"
    options = [*SMALL, f"experiment_root={folder}", "run_dir=run"]
    rate = f"optim.lr=1e{rng.randrange(18, 30)}"
    code = ended(forked(partial(command, TRAIN, *options, rate), log))
    kept = torch.load(run / "diverged.pt", weights_only=True)
    finite = all(
        torch.isfinite(value).all()
        for path in run.glob("checkpoints/*.ckpt")
        for value in read_weights(path).values()
    )
    return not (code == 2 and finite and kept["pair"]["name"] and "optim.lr" in kept["reason"])


def one(fixed: Case, moving: Case, dies: str = "", how: int = 0) -> dict:
    """A pair, or the end of the process that makes it."""
    if fixed.name == dies:
        if how:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(3)
    image = torch.zeros(1, 9, 11)
    return {"fixed": image, "moving": image, "spacing": torch.ones(2), "name": fixed.name}


def load(dies: str, how: int, split: str) -> None:
    """Load pairs in two processes, of which one ends."""
    cases = [Case(f"{n}", Path(f"case{n}.nii.gz")) for n in range(12)]
    pairs = CasePairs([(c, cases[0]) for c in cases], partial(one, dies=dies, how=how))  # type: ignore
    module = PairModule(lambda split: pairs, workers=2)
    loader = module.train_dataloader() if split == "train" else module.val_dataloader()
    try:
        with explained("", "go on"):
            list(loader)
    except UserError as error:
        sys.exit(2 if f"case{dies}.nii.gz" in str(error) else 1)


def dead_worker(rng: random.Random, folder: Path, _: Reference) -> bool:
    """The sentence must name the case that was read."""
    task = partial(load, str(rng.randrange(12)), rng.randrange(2), rng.choice(["train", "val"]))
    return ended(forked(task, folder / "log.txt")) != 2


FAULTS = {  # fault: how often at --times 1
    kill_in_training: 10,
    kill_in_evaluation: 10,
    kill_in_checkpoint: 100,
    kill_in_cache: 100,
    disk_full_in_checkpoint: 50,
    disk_full_in_training: 5,
    out_of_memory: 5,
    not_finite: 5,
    dead_worker: 20,
}


def lost(fault: Callable[..., bool], rng: random.Random, whole: Reference | None) -> bool:
    """Whether one trial of a fault lost anything."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault(rng, Path(folder), whole)
        except Exception as error:
            print(f"{fault.__name__}: {error!r}", file=sys.stderr)
            return True


def main() -> None:
    """Print the table; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--times", type=float, default=1.0, help="of the usual number of trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[fault.__name__ for fault in FAULTS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, total = random.Random(given.seed), 0
    print("| fault | tried | lost | seconds |\n|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Reference(Path(folder))
        for fault, usual in FAULTS.items():
            if fault.__name__ not in given.only:
                continue
            start, times = time.monotonic(), max(1, round(usual * given.times))
            found = sum(lost(fault, rng, whole) for _ in range(times))
            name, seconds = fault.__name__.replace("_", " "), time.monotonic() - start
            print(f"| {name} | {times} | {found} | {seconds:.0f} |", flush=True)
            total += found
    results = [told(disguise) for disguise in disguises().values()]
    bad = sum(ran or not said for said, ran in results)
    print(f"| a stranger's file | {len(results)} | {bad} | |")
    sys.exit(bool(total + bad))


if __name__ == "__main__":
    main()
