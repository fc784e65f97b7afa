"""Freed memory is kept for the next tensor."""

import platform
import subprocess
import sys

import pytest

from regnet_lab.utils import profiling

FAULTS = """
import resource, torch
from regnet_lab.utils import profiling
torch.set_num_threads(1)
if {keep}:
    assert profiling.keep_freed_memory()
def work():
    return (torch.ones(9_000_000) + 1).sum()
for _ in range(10):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(keep):
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
def test_freed_memory_is_not_paged_in_again():
    assert count_page_faults(True) < 0.1 * count_page_faults(False)


def test_other_systems_are_left_unchanged(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not profiling.keep_freed_memory()
