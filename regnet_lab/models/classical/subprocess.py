"""Other libraries in a process beside ours: one that crashes there ends with a sentence here."""

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


def _limit_itk(threads: int) -> None:
    """ITK reads this once, when it is first used."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


@cache
def _process() -> ProcessPoolExecutor:
    """One process, begun when first needed; it stays, for importing takes it seconds."""
    threads = torch.get_num_threads()
    return ProcessPoolExecutor(1, get_context("spawn"), _limit_itk, (threads,))


def apart(package: str, function: Callable[..., R], *arguments: object) -> R:
    """``function(*arguments)`` of a module's top level, in the process beside ours.

    Args:
        package: What must be installed for it.
        function: Takes and gives arrays and plain values.
        arguments: Its arguments.

    Raises:
        MissingPackageError: ``package`` is not installed.
        UserError: The library failed or crashed.
    """
    try:
        version(package)
    except PackageNotFoundError as error:
        raise MissingPackageError(
            f"{package} is not installed: pip install 'regnet-lab[baselines]'."
        ) from error
    try:
        return _process().submit(function, *arguments).result()
    except BrokenProcessPool as error:
        _process.cache_clear()
        raise UserError(f"{package} crashed; with threads=1 it may not.") from error
    except RuntimeError as error:
        raise UserError(f"{package} could not register a pair: {error}") from error
