"""What processes that train or judge together know of each other; alone, each is the only one."""

from itertools import zip_longest
from typing import TypeVar

import torch.distributed as dist

from regnet_lab.errors import DivergedError

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


def stop_together(mine: DivergedError | None) -> None:
    """Go on if no process has such an error; else stop all of them, at the same place, by the
    error of the first one that has one.

    Raises:
        DivergedError: In every process.
    """
    said = everyone(mine and str(mine))
    first = next((rank for rank, sentence in enumerate(said) if sentence), None)
    if first is not None:
        raise mine if mine and first == place()[0] else DivergedError(str(said[first]))


def first() -> bool:
    """Whether this is the first of the processes that work together, or alone."""
    from pytorch_lightning.utilities import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
