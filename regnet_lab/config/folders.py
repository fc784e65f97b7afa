"""Folders of runs: locked while in use, never shared by two runs, free of links to other places.

Imports nothing heavy, so that ``--help`` is quick.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from regnet_lab.config.settings import describe_difference
from regnet_lab.errors import UserError

LOCK_FILE = ".lock"
RUN_FILES = ("config.yaml", "checkpoints")  # either marks the folder of a training run
# what a training run writes, besides its log
RUN_CONTENTS = (*RUN_FILES, "tensorboard", "evaluation", "result.json", "grid.json", "diverged.pt")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes for the duration of the block.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{folder} is in use by another running command; choose another output_dir."
        ) from error
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): set output_dir=<folder>."
        ) from error
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


def refuse_links(folder: Path) -> None:
    """Refuse the folder of a run that contains symbolic links.

    Through one, a stranger's folder could make a command read or write any other file.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                raise UserError(f"{path} is a symbolic link; copy what it points to in its place.")


def remove_run(folder: Path) -> None:
    """Remove what an earlier training run wrote into a folder; other files stay."""
    for name in RUN_CONTENTS:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_unused_folder(folder: Path, log_file: str) -> None:
    """Remove a folder that holds nothing but the log of a failed command, and empty ones above."""
    with suppress(OSError):  # not empty, or not there
        if {path.name for path in folder.iterdir()} <= {log_file, LOCK_FILE}:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            folder.parent.rmdir()


def require_same_settings(
    folder: Path, kind: str, settings: dict[str, str], earlier: dict[str, str]
) -> None:
    """Refuse a folder that holds a ``kind`` of result with other settings; equal ones may repeat.

    Both settings are flat (:func:`regnet_lab.config.settings.flatten`).
    """
    if difference := describe_difference(settings, earlier):
        raise UserError(
            f"{folder} holds another {kind} ({difference}): choose another output_dir, or replace "
            "it with overwrite=true."
        )


def require_no_other_run(folder: str, overwrite: bool) -> None:
    """Refuse to start a training run in the folder of another one; ``overwrite`` removes that."""
    path = Path(folder)
    if not any((path / name).exists() for name in RUN_FILES):
        return
    if not overwrite:
        raise UserError(
            f"{folder} holds a training run: continue it with resume={folder}, choose another "
            "output_dir or run_dir, or replace it with overwrite=true."
        )
    remove_run(path)


@contextmanager
def claim_output_dir(cfg: DictConfig, log_file: str) -> Iterator[None]:
    """Lock ``output_dir`` during the block; if it fails, leave no folder without results behind."""
    if not cfg.output_dir:
        raise UserError("output_dir must name a folder.")
    folder = Path(cfg.output_dir)
    try:
        with lock_folder(folder):
            yield
    except BaseException:
        remove_unused_folder(folder, log_file)
        raise
