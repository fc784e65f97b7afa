"""Record which pair each data loading process is reading, to explain why one has died."""

import os
import time
from collections.abc import Iterable
from multiprocessing import active_children
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch.utils.data import Dataset, get_worker_info

from regnet_lab.data.datasets.base import describe_item
from regnet_lab.types import Pair

IDLE = -1


class WorkerMonitor(Dataset[Pair]):
    """A data set whose loading processes record in shared memory which pair they are reading."""

    instances: ClassVar["WeakSet[WorkerMonitor]"] = WeakSet()

    def __init__(self, dataset: Any, num_workers: int) -> None:
        self.dataset = dataset
        # (num_workers, 2): process id and index of the pair being read, or IDLE
        self.current_items = torch.full((num_workers, 2), IDLE).share_memory_()
        WorkerMonitor.instances.add(self)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Any) -> Pair:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[item]
        index = item[1] if isinstance(item, tuple) else item
        self.current_items[worker.id] = torch.tensor([os.getpid(), index])
        pair = self.dataset[item]
        self.current_items[worker.id, 1] = IDLE
        return pair


def monitor_workers(dataset: Dataset[Pair], num_workers: int) -> Dataset[Pair]:
    """Return the data set with a monitor around it, or unchanged if no processes load it."""
    return WorkerMonitor(dataset, num_workers) if num_workers else dataset


def find_dead_workers(timeout: float = 5.0) -> set[int]:
    """Return the ids of loading processes that have ended; wait up to ``timeout`` s for one."""
    monitors = list(WorkerMonitor.instances)
    recorded = {pid for m in monitors for pid in m.current_items[:, 0].tolist()} - {IDLE}
    deadline = time.monotonic() + timeout
    while True:
        dead = recorded - {child.pid for child in active_children()}
        if dead or not recorded or time.monotonic() > deadline:
            return dead
        time.sleep(0.02)


def take_interrupted_items(processes: Iterable[int]) -> list[str]:
    """Return the pairs that these processes were reading when they ended, and clear the record."""
    processes, descriptions = set(processes), []
    for monitor in list(WorkerMonitor.instances):
        for row in monitor.current_items:
            process, index = row.tolist()
            if process in processes:
                row.fill_(IDLE)
                if index != IDLE:
                    descriptions.append(describe_item(monitor.dataset, index))
    return descriptions
