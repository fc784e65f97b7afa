"""Wall-clock time and peak memory of a block of code."""

import ctypes
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _peak_resident_mb() -> float:
    with suppress(OSError):
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Profile:
    """``with Profile(device) as p: ...`` and then ``p.seconds`` and ``p.peak_mb``.

    The peak is what the device's allocator reached on a GPU, and the whole process's resident
    memory on a CPU (reset before the block where Linux allows it).
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
                RESET.write_text("5")
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak_mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            self.peak_mb = _peak_resident_mb()
        self.seconds = time.perf_counter() - self.start


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # glibc's names of mallopt's parameters, less their M_


def hold() -> bool:
    """Keep freed memory for the next tensor, where glibc would return it to the system.

    glibc maps every large block anew and unmaps it when it is freed, so that each step of a
    training on a CPU has all of its memory paged in again, one page of 4 kB after the other
    (``benchmarks/allocator.py``).  The process stays as large as it once was.

    Returns:
        Whether it could be done: under Linux with glibc only.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, -1))
