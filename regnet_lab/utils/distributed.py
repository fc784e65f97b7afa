"""Exchange values between the processes of a distributed run; a single process is rank 0 of 1."""

from itertools import zip_longest
from typing import TypeVar

import torch.distributed as dist

from regnet_lab.errors import DivergedError

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    _, world = rank_and_world_size()
    if world == 1:
        return [value]
    values: list[T] = [value] * world
    dist.all_gather_object(values, value)
    return values


def gather_interleaved(rows: list[T]) -> list[T]:
    """Gather the rows of all processes, one of each in turn.

    This restores the order of the pairs, which are distributed to processes in turn.
    """
    turns = zip_longest(*([[row] for row in local] for local in all_gather(rows)), fillvalue=[])
    return [row for turn in turns for part in turn for row in part]


def raise_on_all_ranks(error: DivergedError | None) -> None:
    """Raise in every process if one of them has an error; all stop at the same place.

    Raises:
        DivergedError: The error of the lowest rank that has one.
    """
    messages = all_gather(error and str(error))
    failed = next((rank for rank, message in enumerate(messages) if message), None)
    if failed is not None:
        is_own = error is not None and failed == rank_and_world_size()[0]
        raise error if error and is_own else DivergedError(str(messages[failed]))


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, as a single process has."""
    from pytorch_lightning.utilities import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
