"""Measure time and peak memory of a block of code; keep freed memory during training."""

import ctypes
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

PROCESS_STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _peak_resident_mb() -> float:
    with suppress(OSError):
        for line in PROCESS_STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Profile:
    """Context manager that measures ``seconds`` and ``peak_mb`` of its block.

    The peak is that of the CUDA allocator on a GPU, and the resident memory of the whole process
    on a CPU (reset before the block where Linux allows it).
    """

    seconds = peak_mb = float("nan")

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Profile":
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                RESET_PEAK.write_text("5")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            self.peak_mb = _peak_resident_mb()
        self.seconds = time.perf_counter() - self.start


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def keep_freed_memory() -> bool:
    """Reuse freed memory for later tensors instead of returning it to the operating system.

    By default glibc maps every large block anew and unmaps it when it is freed, so that each
    training step on a CPU has all of its memory paged in again, 4 kB at a time
    (``benchmarks/allocator.py``). With this setting the process keeps its largest size.

    Returns:
        Whether the setting was made: under Linux with glibc only.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
