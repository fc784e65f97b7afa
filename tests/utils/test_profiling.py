"""Freed memory is kept for the next tensor."""

import platform
import subprocess
import sys

import pytest

from regnet_lab.utils import profiling

FAULTS = """
import resource, torch
from regnet_lab import memory
torch.set_num_threads(1)
if {held}:
    assert memory.hold()
def work():
    return (torch.ones(9_000_000) + 1).sum()
for _ in range(10):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(held):
    command = [sys.executable, "-c", FAULTS.format(held=held)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
def test_memory_that_was_freed_is_not_paged_in_again():
    assert faults(True) < 0.1 * faults(False)


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert not profiling.hold()
