"""Translation of out-of-memory, full-disk, worker and communication failures into instructions."""

import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from regnet_lab.data.worker_monitor import find_dead_workers, take_interrupted_items
from regnet_lab.errors import CommonError, UserError
from regnet_lab.utils.distributed import rank_and_world_size

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUDNN_STATUS_ALLOC_FAILED", re.I)
WORKER_EXIT = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)\s*([^.]*)")
WORKER_ERRORS = (ConnectionError, EOFError)  # when a worker ends while it hands over a batch
PEER_EXIT = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError", re.I)
NONDETERMINISTIC = re.compile(r"(\w+) does not have a deterministic implementation")


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


def explain_failure(error: BaseException, memory_hint: str, retry_hint: str) -> str | None:
    """Explain a failure of hardware, of another process or of an operation; None: a different one.

    The hints are those of :func:`translate_errors`.
    """
    text = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or OUT_OF_MEMORY.search(text):
        return f"out of memory: {memory_hint}; then {retry_hint}."
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        path = error.filename or "a file"
        return f"{path} cannot be written ({error.strerror}): make room, then {retry_hint}."
    if explanation := explain_dead_worker(error, retry_hint):
        return explanation
    if PEER_EXIT.search(text):
        return f"another process of this job has ended; its own message says why: {retry_hint}."
    if match := NONDETERMINISTIC.search(text):
        return (
            f"{match[1]} has no deterministic implementation on this device: set "
            "deterministic=warn to allow it, or use the CPU."
        )
    return None


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
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except (RuntimeError, OSError, MemoryError, EOFError) as error:
        explanation = explain_failure(error, memory_hint, retry_hint)
        if explanation is None:
            raise
        raise UserError(explanation) from error


def oom_hint(cfg: DictConfig) -> str:
    """Return what a run with this configuration can change if memory runs out."""
    batch_size = OmegaConf.select(cfg, "data.batch_size") or 1
    hints = []
    if cfg.get("training_optimizer") and batch_size > 1:
        hints.append(f"lower data.batch_size, now {batch_size}")
    if cfg.trainer.precision == 32:
        hints.append("set trainer.precision=bf16-mixed")
    return ", or ".join([*hints, "use a smaller grid, a smaller model or the CPU"])
