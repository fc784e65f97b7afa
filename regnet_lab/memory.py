"""How the process holds its memory."""

import ctypes
import sys

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
