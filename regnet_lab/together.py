"""What processes that train or judge together know of each other; alone, each is the only one."""

from itertools import zip_longest
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def place() -> tuple[int, int]:
    """Rank of this process, and how many work together."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def everyone(mine: T) -> list[T]:
    """What each process has, by rank."""
    _, world = place()
    if world == 1:
        return [mine]
    theirs: list[T] = [mine] * world
    dist.all_gather_object(theirs, mine)
    return theirs


def gathered(rows: list[T]) -> list[T]:
    """The rows of all processes, in turn: the order of the pairs that :class:`Share` deals out."""
    turns = zip_longest(*([[row] for row in mine] for mine in everyone(rows)), fillvalue=[])
    return [row for turn in turns for part in turn for row in part]
