"""What the processes that load are at, so that the end of one can be explained."""

import os
import time
from collections.abc import Iterable
from multiprocessing import active_children
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from torch.utils.data import Dataset, Subset, get_worker_info

from regnet_lab.data.augmentation import Augmented
from regnet_lab.data.datasets.base import Listing
from regnet_lab.types import Pair

IDLE = -1


class Watched(Dataset[Pair]):
    """Pairs; each of ``workers`` processes notes in shared memory which one it is making."""

    living: ClassVar["WeakSet[Watched]"] = WeakSet()

    def __init__(self, pairs: Dataset[Pair], workers: int) -> None:
        self.watched = pairs
        self.places = torch.full((workers, 2), IDLE).share_memory_()  # process, index
        Watched.living.add(self)

    def __len__(self) -> int:
        return len(self.watched)  # type: ignore[arg-type]

    def __getitem__(self, item: Any) -> Pair:
        worker = get_worker_info()
        if worker is None:
            return self.watched[item]
        index = item[1] if isinstance(item, tuple) else item
        self.places[worker.id] = torch.tensor([os.getpid(), index])
        pair = self.watched[item]
        self.places[worker.id, 1] = IDLE
        return pair


def watched(pairs: Dataset[Pair], workers: int) -> Dataset[Pair]:
    """The pairs as ``workers`` processes are to load them."""
    return Watched(pairs, workers) if workers else pairs


def called(pairs: Any, index: int) -> str:
    """What a pair is called before it is read: its images' files where there are any."""
    if isinstance(pairs, Augmented):
        return called(pairs.pairs, index)
    if isinstance(pairs, Subset):
        return called(pairs.dataset, pairs.indices[index])
    if hasattr(pairs, "parts") and hasattr(pairs, "place"):
        part, item = pairs.place(index)
        return called(pairs.parts[part], item)
    couples = Listing("", "", pairs).pairs
    return " and ".join(str(case.image) for case in couples[index]) if couples else f"pair {index}"


def ended(patience: float = 5.0) -> set[int]:
    """The processes that loaded and are no more, if one ends within ``patience`` seconds."""
    noted = {process for pairs in list(Watched.living) for process in pairs.places[:, 0].tolist()}
    noted, limit = noted - {IDLE}, time.monotonic() + patience
    while noted and noted <= {child.pid for child in active_children()}:
        if time.monotonic() > limit:
            break
        time.sleep(0.02)
    return noted - {child.pid for child in active_children()}


def at(processes: Iterable[int]) -> list[str]:
    """The pairs that these processes were making when they ended; then they are forgotten."""
    processes, found = set(processes), []
    for pairs in list(Watched.living):
        for place, (process, index) in zip(pairs.places, pairs.places.tolist(), strict=True):
            if process in processes:
                place.fill_(IDLE)
                found += [called(pairs.watched, index)] if index != IDLE else []
    return found
