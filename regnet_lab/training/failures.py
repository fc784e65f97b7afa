"""What can befall a long run through nobody's fault, in a sentence that says what to do."""

import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig, OmegaConf

from regnet_lab.data.worker_monitor import at, ended
from regnet_lab.errors import CommonError, UserError
from regnet_lab.utils.distributed import place

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|CUDNN_STATUS_ALLOC_FAILED", re.I)
DEAD = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)\s*([^.]*)")
CUT = (ConnectionError, EOFError)  # while an ending process hands over what it made
LEFT = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError", re.I)
INEXACT = re.compile(r"(\w+) does not have a deterministic implementation")


def no_memory(error: BaseException, smaller: str, again: str) -> str | None:
    """Of a device, or of the machine."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not (known or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)))):
        return None
    return f"memory did not suffice: {smaller}; then {again}."


def full_disk(error: BaseException, again: str) -> str | None:
    """Or a quota, or the largest file allowed."""
    if not (isinstance(error, OSError) and error.errno in FULL):
        return None
    place = f" {error.filename}" if error.filename else ""
    return f"nothing more can be written{place} ({error.strerror}): make room, then {again}."


def dead_worker(error: BaseException, again: str) -> str | None:
    """A process that loaded data has ended."""
    found = DEAD.search(str(error)) if isinstance(error, RuntimeError) else None
    if not (found or isinstance(error, CUT)):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # further ends are no news
    dead = {int(number) for number in found[1].split(",")} if found else ended()
    if not dead:
        return None
    pairs = " and ".join(at(dead)) or "nothing"
    how = " ".join(found[2].split()) if found else "ended"
    return (
        f"a process that loads data {how} while it read {pairs}: if memory ran out lower "
        f"data.workers, else data.workers=0 shows the fault; then {again}."
    )


def left_alone(error: BaseException, again: str) -> str | None:
    """Another of the processes that work together has ended."""
    if not (isinstance(error, RuntimeError) and LEFT.search(str(error))):
        return None
    return f"another process of this job has ended, and has said why if it could: {again}."


def inexact(error: BaseException) -> str | None:
    """An operation cannot be repeated bit by bit."""
    found = INEXACT.search(str(error)) if isinstance(error, RuntimeError) else None
    if not found:
        return None
    return (
        f"{found[1]} has no deterministic form on this device: train with deterministic=warn, "
        "which tolerates it, or on the CPU."
    )


@contextmanager
def explained(smaller: str, again: str) -> Iterator[None]:
    """Turn what befalls the block into one sentence.

    Args:
        smaller: What to lower where memory does not suffice, such as ``lower data.batch_size``.
        again: What to do once the fault is mended, such as ``continue with ...``.

    Raises:
        UserError: It befell; anything else passes as it is.
        SystemExit: What befell all processes is left to the first one to tell.  The others end as
            if all were well: as soon as one fails, Lightning kills the first, which may not have
            spoken yet.
    """
    try:
        yield
    except CommonError as error:
        if place()[0]:
            raise SystemExit(0) from error
        raise
    except (RuntimeError, OSError, MemoryError, EOFError) as error:
        told = (
            no_memory(error, smaller, again)
            or full_disk(error, again)
            or dead_worker(error, again)
            or left_alone(error, again)
            or inexact(error)
        )
        if told is None:
            raise
        raise UserError(told) from error


def less(cfg: DictConfig) -> str:
    """What to lower where memory does not suffice."""
    batch = OmegaConf.select(cfg, "data.batch_size") or 1
    steps = [f"lower data.batch_size, now {batch}"] if cfg.get("optim") and batch > 1 else []
    if cfg.trainer.precision == 32:
        steps.append("set trainer.precision=bf16-mixed")
    return ", or ".join([*steps, "take a smaller grid, a narrower model, or the CPU"])
