"""Run other libraries in a child process, so that their crashes become error messages."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from typing import TypeVar

import torch

from regnet_lab.errors import MissingPackageError, UserError

R = TypeVar("R")


def _limit_itk_threads(threads: int) -> None:
    """Limit the threads of ITK, which reads the variable when first used."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


@cache
def _start_child_process() -> ProcessPoolExecutor:
    """Start the one child process; it is kept, as its imports take seconds."""
    threads = torch.get_num_threads()
    return ProcessPoolExecutor(1, get_context("spawn"), _limit_itk_threads, (threads,))


def run_in_child_process(package: str, function: Callable[..., R], *arguments: object) -> R:
    """Run a module-level function of arrays and plain values in the child process."""
    try:
        version(package)
    except PackageNotFoundError as error:
        raise MissingPackageError(
            f"{package} is not installed: run "
            "pip install --constraint constraints.txt '.[baselines]' in the project folder."
        ) from error
    try:
        return _start_child_process().submit(function, *arguments).result()
    except BrokenProcessPool as error:
        _start_child_process.cache_clear()
        raise UserError(f"{package} crashed; try threads=1.") from error
    except RuntimeError as error:
        raise UserError(f"{package} could not register a pair: {error}") from error
