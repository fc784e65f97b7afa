"""Translation of out-of-memory, full-disk, worker and communication failures into instructions."""

import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig, OmegaConf

from regnet_lab.data.worker_monitor import find_dead_workers, take_interrupted_items
from regnet_lab.errors import CommonError, UserError
from regnet_lab.utils.distributed import rank_and_world_size

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUDNN_STATUS_ALLOC_FAILED", re.I)
WORKER_EXIT = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)\s*([^.]*)")
WORKER_ERRORS = (ConnectionError, EOFError)  # when a worker ends while it hands over a batch
PEER_EXIT = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError", re.I)
NONDETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")


def explain_out_of_memory(error: BaseException, memory_hint: str, retry_hint: str) -> str | None:
    """Explain that the memory of the device or the machine does not suffice."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not out_of_memory:
        out_of_memory = isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))
    return f"out of memory: {memory_hint}; then {retry_hint}." if out_of_memory else None


def explain_full_disk(error: BaseException, retry_hint: str) -> str | None:
    """Explain that the disk is full or a quota or the largest file size is reached."""
    if not (isinstance(error, OSError) and error.errno in DISK_ERRORS):
        return None
    path = error.filename or "a file"
    return f"{path} cannot be written ({error.strerror}): make room, then {retry_hint}."


def explain_dead_worker(error: BaseException, retry_hint: str) -> str | None:
    """Explain that a data loading process ended, and which pairs it was reading."""
    match = WORKER_EXIT.search(str(error)) if isinstance(error, RuntimeError) else None
    if not (match or isinstance(error, WORKER_ERRORS)):
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise for further workers
    process_ids = {int(number) for number in match[1].split(",")} if match else find_dead_workers()
    if not process_ids:
        return None
    pairs = " and ".join(take_interrupted_items(process_ids)) or "no pair"
    event = " ".join(match[2].split()) if match else "ended"
    return (
        f"a data loading process {event} while it read {pairs}: lower data.num_workers if memory "
        f"ran out, or find the cause with data.num_workers=0; then {retry_hint}."
    )


def explain_dead_peer(error: BaseException, retry_hint: str) -> str | None:
    """Explain that another training process of the job ended."""
    if not (isinstance(error, RuntimeError) and PEER_EXIT.search(str(error))):
        return None
    return f"another process of this job has ended; its own message says why: {retry_hint}."


def explain_nondeterministic(error: BaseException) -> str | None:
    """Explain that an operation has no deterministic implementation."""
    match = NONDETERMINISTIC.search(str(error)) if isinstance(error, RuntimeError) else None
    if not match:
        return None
    return (
        f"{match[1]} has no deterministic implementation on this device: set deterministic=warn to "
        "allow it, or use the CPU."
    )


@contextmanager
def translate_errors(memory_hint: str, retry_hint: str) -> Iterator[None]:
    """Translate failures of hardware and other processes inside the block into one sentence.

    Args:
        memory_hint: What to do if memory runs out, such as ``lower data.batch_size``.
        retry_hint: What to do after the cause is removed, such as ``continue with ...``.

    Raises:
        UserError: A known failure occurred; other errors pass unchanged.
        SystemExit: With status 0, in all processes but the first, after an error that all have in
            common.  The first process reports it; a failing one would make Lightning kill the
            first before it does.
    """
    try:
        yield
    except CommonError as error:
        if rank_and_world_size()[0]:
            raise SystemExit(0) from error
        raise
    except (RuntimeError, OSError, MemoryError, EOFError) as error:
        explanation = (
            explain_out_of_memory(error, memory_hint, retry_hint)
            or explain_full_disk(error, retry_hint)
            or explain_dead_worker(error, retry_hint)
            or explain_dead_peer(error, retry_hint)
            or explain_nondeterministic(error)
        )
        if explanation is None:
            raise
        raise UserError(explanation) from error


def oom_hint(cfg: DictConfig) -> str:
    """Return what a run with this configuration can change if memory runs out."""
    batch_size = OmegaConf.select(cfg, "data.batch_size") or 1
    hints = []
    if cfg.get("optim") and batch_size > 1:
        hints.append(f"lower data.batch_size, now {batch_size}")
    if cfg.trainer.precision == 32:
        hints.append("set trainer.precision=bf16-mixed")
    return ", or ".join([*hints, "use a smaller grid, a smaller model or the CPU"])
