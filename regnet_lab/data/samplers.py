"""Samplers and a data loader whose order depends only on seed and epoch and survives a restart."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from regnet_lab.errors import CommonError, UserError
from regnet_lab.types import Pair
from regnet_lab.utils.distributed import rank_and_world_size


class EpochSampler(Sampler[Any]):
    """A random order of training pairs that is a function of (seed, epoch) alone.

    Pairs are drawn without replacement until all have been drawn, then again.  With n processes
    each takes every n-th draw, so that together they see the pairs that one process with an n times
    larger batch would; an epoch of ``epoch_size`` draws, of all processes together, is rounded up
    to the same number for each.
    """

    def __init__(self, dataset_size: int, epoch_size: int, seed: int) -> None:
        self.dataset_size, self.epoch_size, self.seed = dataset_size, epoch_size, seed
        self.epoch = 0
        self.start = 0  # first draw of the next iteration, of this process

    def __len__(self) -> int:
        return -(-self.epoch_size // rank_and_world_size()[1])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before every epoch."""
        self.epoch = epoch

    def draw_order(self) -> torch.Tensor:
        """Draw the indices of this epoch for all processes."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        total = len(self) * rank_and_world_size()[1]
        rounds = -(-total // self.dataset_size)
        orders = [torch.randperm(self.dataset_size, generator=generator) for _ in range(rounds)]
        return torch.cat(orders)[:total]

    def draw_numbers(self) -> range:
        """Return the numbers of this process's draws, counted from the start of training."""
        rank, world_size = rank_and_world_size()
        start, self.start = self.start, 0
        before = self.epoch * len(self) * world_size
        stop = before + len(self) * world_size
        return range(before + start * world_size + rank, stop, world_size)

    def iterate_draws(self) -> Iterator[tuple[int, int]]:
        """Yield number and index of every draw."""
        order = self.draw_order()
        yield from ((n, int(order[n % len(order)])) for n in self.draw_numbers())

    def __iter__(self) -> Iterator[Any]:
        return (index for _, index in self.iterate_draws())


class NumberedEpochSampler(EpochSampler):
    """The order of :class:`EpochSampler` as (n, index), n counted from the start of training."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self.iterate_draws()


class DrawNumberSampler(EpochSampler):
    """The numbers of the draws since the start of training; an epoch continues the last one."""

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw_numbers())


class DistributedEvalSampler(Sampler[int]):
    """Every pair once, in order, distributed over the processes in turn.

    Unlike PyTorch's ``DistributedSampler`` it repeats no pair.
    """

    def __init__(self, dataset_size: int) -> None:
        self.dataset_size = dataset_size

    def __len__(self) -> int:
        return len(self.list_local_indices())

    def __iter__(self) -> Iterator[int]:
        return iter(self.list_local_indices())

    def list_local_indices(self) -> range:
        """Return the indices of this process."""
        rank, world_size = rank_and_world_size()
        if self.dataset_size < world_size:
            raise UserError(
                f"{self.dataset_size} pairs cannot be shared by {world_size} processes: "
                "lower trainer.devices or trainer.num_nodes."
            )
        return range(rank, self.dataset_size, world_size)


class ResumableDataLoader(DataLoader[Pair]):
    """A data loader whose position in the epoch is saved in and restored from checkpoints."""

    sampler: EpochSampler
    batch_size: int
    consumed = 0  # batches of this epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.consumed = self.sampler.start // self.batch_size
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, the number of batches consumed in it and what a batch consists of."""
        state = {"epoch": self.sampler.epoch, "consumed": self.consumed, "length": len(self)}
        return state | self._count_pairs()

    def _count_pairs(self) -> dict[str, int]:
        return {"data.batch_size": self.batch_size, "processes": rank_and_world_size()[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue behind the last consumed batch, or with the next epoch after a whole one.

        Raises:
            CommonError: Within an epoch, whose batches had another number of pairs.
        """
        done = state["consumed"] >= state.get("length", len(self))
        for name, number in self._count_pairs().items():
            if not done and state.get(name, number) != number:
                raise CommonError(
                    f"The checkpoint lies within an epoch with {name}={state[name]}; continuing "
                    f"with {name}={number} would repeat or leave out pairs: use {state[name]}."
                )
        self.sampler.epoch = state["epoch"] + done
        self.sampler.start = 0 if done else state["consumed"] * self.batch_size
