"""Commands in copies of this process, which has everything imported, and one undisturbed run."""

import importlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from regnet_lab.config.checkpoints import read_weights


def script(name: str) -> Callable[[], None]:
    """A command, telling mistakes in one sentence though it is not the only one imported."""
    os.environ["HYDRA_FULL_ERROR"] = ""
    return importlib.import_module(name).main


TRAIN, EVALUATE = script("train"), script("evaluate")
SMALL = [
    "ndim=2",
    "model=voxelmorph",
    "data.dataset.shape=32",
    "data.dataset.num_pairs=12",
    "data.batch_size=2",
    "trainer.limit_val_batches=2",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks.validation_figure=null",
    "callbacks.last.every_n_steps=1",
    "threads=1",
]
JUDGED = [
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "threads=1",
    "num_pictures=2",
]


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


class TooLateError(Exception):
    """What was to be disturbed was over."""


def disturbed(pid: int, after: float, sign: int = signal.SIGKILL) -> int:
    """Send a copy a signal after some seconds; its exit code.

    Raises:
        TooLateError: It had ended.
    """
    limit = time.monotonic() + after
    while time.monotonic() < limit:
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            raise TooLateError
        time.sleep(0.005)
    os.kill(pid, sign)
    return ended(pid)


def have_same_weights(path: Path, other_path: Path) -> bool:
    """Whether two checkpoints hold the same bits."""
    a, b = read_weights(path), read_weights(other_path)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Reference:
    """An undisturbed run and its evaluation, and how long they took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "whole"
        start = time.monotonic()
        self.do(TRAIN, *SMALL, f"experiment_root={folder}", "run_dir=whole", "overwrite=true")
        self.training = time.monotonic() - start
        start = time.monotonic()
        self.do(EVALUATE, f"run={self.run}", *JUDGED)
        self.judging = time.monotonic() - start
        self.last = self.run / "checkpoints" / "last.ckpt"
        self.best = self.last.with_name("best.ckpt")
        self.cases = numbers(self.run / "evaluation" / "synthetic-test-score-full" / "cases.csv")

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


def limited(size: int, task: Callable[[], object]) -> None:
    """Do something while no file may become larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    task()
