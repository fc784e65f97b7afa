"""One data module for every data set: three splits, a training order that survives a restart."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from regnet_lab.data.augmentation import Augment, Augmented
from regnet_lab.data.datasets.base import Listing
from regnet_lab.data.worker_monitor import watched
from regnet_lab.errors import UserError
from regnet_lab.types import Pair
from regnet_lab.utils.distributed import place


class EpochSampler(Sampler[int]):
    """``samples`` indices for each epoch, a function of (seed, epoch) alone.

    Drawn without replacement while they last; iteration begins at ``start``.  Of several processes
    each takes every so many-th, so that a step of all of them sees the pairs that a step of one
    process with as large a batch sees; an epoch is rounded up to as many pairs for each.
    """

    def __init__(self, population: int, samples: int, seed: int) -> None:
        self.population, self.samples, self.seed = population, samples, seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return -(-self.samples // place()[1])

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def order(self) -> torch.Tensor:
        """The indices of this epoch for all processes."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        whole = len(self) * place()[1]
        rounds = -(-whole // self.population)
        orders = [torch.randperm(self.population, generator=generator) for _ in range(rounds)]
        return torch.cat(orders)[:whole]

    def draws(self) -> range:
        """The numbers of this process's draws, counted since training began."""
        rank, world = place()
        start, self.start = self.start, 0
        before = self.epoch * len(self) * world
        return range(before + start * world + rank, before + len(self) * world, world)

    def numbered(self) -> Iterator[tuple[int, int]]:
        """Number and index of every draw."""
        order = self.order()
        yield from ((n, int(order[n % len(order)])) for n in self.draws())

    def __iter__(self) -> Iterator[int]:
        return (index for _, index in self.numbered())


class DrawSampler(EpochSampler):
    """The same order as (n, index), where n counts what was drawn since training began."""

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return self.numbered()


class Share(Sampler[int]):
    """Every pair in its own order; of several processes the first takes the first, the second the
    second and so on in turn, none twice.
    """

    def __init__(self, population: int) -> None:
        self.population = population

    def __len__(self) -> int:
        return len(self.mine())

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine())

    def mine(self) -> range:
        """The pairs of this process.

        Raises:
            UserError: There are more processes than pairs.
        """
        rank, world = place()
        if self.population < world:
            raise UserError(
                f"{self.population} pairs cannot be shared by {world} processes: "
                "lower trainer.devices or trainer.num_nodes."
            )
        return range(rank, self.population, world)


class ResumableLoader(DataLoader[Pair]):
    """A loader whose place in the epoch goes into the checkpoint and comes back from it."""

    consumed = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.consumed = self.sampler.start // self.batch_size  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "consumed": self.consumed}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, int]) -> None:
        done = state["consumed"] >= len(self)
        self.sampler.epoch = state["epoch"] + done  # type: ignore[attr-defined]
        self.sampler.start = 0 if done else state["consumed"] * self.batch_size  # type: ignore


def share_of(pairs: Dataset[Pair], fraction: float) -> list[int]:
    """Indices of the pairs of the first int(fraction n) of n subjects, as in GraDIRN's study.

    A subject is an image that moves in some pair; a pair counts if its moving image is of one
    of those subjects and so is its fixed image, unless that never moves, as an atlas.  Of a data
    set without a list of files it is the first int(fraction n) of n pairs.  The subjects of a
    smaller share are among those of a larger one.

    Raises:
        UserError: The fraction is not within (0, 1] or leaves no pair.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data.fraction={fraction}: give a share above 0 and at most 1.")
    listing = Listing("train", "", pairs)
    couples, moved = listing.pairs, {moving.image for _, moving in listing.pairs}
    movers = [image for image in listing.images if image in moved]
    total = len(movers) or len(pairs)  # type: ignore[arg-type]
    count = int(fraction * total + 1e-9)
    kept = {*movers[:count]}
    chosen = [
        index
        for index, (fixed, moving) in enumerate(couples)
        if moving.image in kept and (fixed.image in kept or fixed.image not in moved)
    ]
    chosen = chosen if couples else list(range(count))
    if not chosen:
        raise UserError(
            f"data.fraction={fraction}: {count} of {total} subjects make no pair; "
            "give a larger share."
        )
    return chosen


class PairModule(LightningDataModule):
    """Load pairs.

    Args:
        dataset: ``dataset(split=...)`` makes the data set of ``train``, ``val`` or ``test``.
        batch_size: Pairs in a training step of one process; validation and test take one at a time.
        epoch_size: Pairs in a training epoch; null: as many as there are.
        fraction: Share of the training subjects that are used (:func:`share_of`), as often as
            all would be: an epoch keeps its length.
        workers: Processes that load.
        seed: Of the training order and of what augmentation draws.
        augment: Changes training pairs (:mod:`regnet_lab.data.augmentation`); null: nothing does.
    """

    def __init__(
        self,
        dataset: Callable[..., Dataset[Pair]],
        batch_size: int = 1,
        epoch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        fraction: float = 1.0,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.epoch_size = dataset, batch_size, epoch_size
        self.workers, self.seed, self.augment = workers, seed, augment
        self.fraction = fraction

    def pairs(self, split: str) -> Dataset[Pair]:
        """The data set of a split.

        Raises:
            UserError: It is empty.
        """
        pairs = self.dataset(split=split)
        if not len(pairs):  # type: ignore[arg-type]
            raise UserError(f"The data set has no pairs for '{split}'.")
        return pairs

    def train_dataloader(self) -> ResumableLoader:
        pairs = self.pairs("train")
        samples, workers = self.epoch_size or len(pairs), self.workers  # type: ignore[arg-type]
        if self.fraction != 1:
            pairs = Subset(pairs, share_of(pairs, self.fraction))
        order = (len(pairs), samples, self.seed)  # type: ignore[arg-type]
        return ResumableLoader(
            watched(Augmented(pairs, self.augment, self.seed) if self.augment else pairs, workers),
            self.batch_size,
            sampler=DrawSampler(*order) if self.augment else EpochSampler(*order),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def one_by_one(self, split: str) -> DataLoader[Pair]:
        """Every pair of a split in its own order, a batch each."""
        pairs = self.pairs(split)
        return DataLoader(
            watched(pairs, self.workers),
            sampler=Share(len(pairs)),  # type: ignore[arg-type]
            num_workers=self.workers,
        )

    def val_dataloader(self) -> DataLoader[Pair]:
        return self.one_by_one("val")

    def test_dataloader(self) -> DataLoader[Pair]:
        return self.one_by_one("test")
