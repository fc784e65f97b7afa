"""The Lightning data module of every data set of pairs."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Subset, default_collate

from regnet_lab.data.augmentation import Augmentation, AugmentedPairs
from regnet_lab.data.datasets.base import PairDataset, as_pair_dataset
from regnet_lab.data.samplers import (
    DistributedEvalSampler,
    EpochSampler,
    NumberedEpochSampler,
    ResumableDataLoader,
)
from regnet_lab.data.worker_monitor import monitor_workers
from regnet_lab.errors import UserError
from regnet_lab.types import Pair, update_pair


def select_training_fraction(dataset: PairDataset, fraction: float) -> list[int]:
    """Return the indices of the pairs of the first int(fraction n) of n subjects (GraDIRN).

    A subject is an image that is the moving one of some pair.  A pair is selected if its moving
    image is one of those subjects and so is its fixed image, unless that is never moving, as an
    atlas.  Without image files the first int(fraction n) of n pairs are selected.  The subjects of
    a smaller fraction are among those of a larger one.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"data.fraction={fraction}: give a number above 0 and at most 1.")
    case_pairs = dataset.case_pairs
    moving_images = {moving.image for _, moving in case_pairs}
    images = dict.fromkeys(case.image for pair in case_pairs for case in pair)
    subjects = [image for image in images if image in moving_images]
    total = len(subjects) or len(dataset)
    count = int(fraction * total + 1e-9)
    left_out = {*subjects[count:]}
    indices = [
        index
        for index, pair in enumerate(case_pairs)
        if left_out.isdisjoint(case.image for case in pair)
    ]
    indices = indices if case_pairs else list(range(count))
    if not indices:
        raise UserError(
            f"data.fraction={fraction}: {count} of {total} subjects make no pair; "
            "give a larger fraction."
        )
    return indices


def collate_pairs(pairs: Sequence[Pair]) -> Pair:
    """Make a batch of pairs as PyTorch does, with label maps in the widest of their data types."""
    widest = {}
    for key in ("fixed_labels", "moving_labels"):
        dtypes = [cast(dict, pair)[key].dtype for pair in pairs if key in pair]
        if len(set(dtypes)) > 1:
            widest[key] = reduce(torch.promote_types, dtypes)
    converted = [
        update_pair(pair, **{k: cast(dict, pair)[k].to(d) for k, d in widest.items() if k in pair})
        for pair in pairs
    ]
    return default_collate(converted)


class PairDataModule(LightningDataModule):
    """Data loaders of the three splits of a data set.

    Args:
        dataset: ``dataset(split=...)`` creates the data set of ``train``, ``val`` or ``test``.
        batch_size: Pairs in a training step of one process; validation and test take one at a time.
        epoch_size: Pairs in a training epoch; null: the size of the data set.
        num_workers: Number of loading processes.
        seed: Seed of the training order and of augmentation.
        augment: Augmentation of training pairs (:mod:`regnet_lab.data.augmentation`); null: none.
        fraction: Fraction of the training subjects to use (:func:`select_training_fraction`); the
            length of an epoch stays that of all of them.
    """

    def __init__(
        self,
        dataset: Callable[..., Any],
        batch_size: int = 1,
        epoch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augmentation | None = None,
        fraction: float = 1.0,
    ) -> None:
        super().__init__()
        limits = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
        for key, (number, minimum) in (limits | {"epoch_size": (epoch_size or 1, 1)}).items():
            if number < minimum:
                raise UserError(f"data.{key}={number} must be at least {minimum}.")
        self.dataset, self.batch_size, self.epoch_size = dataset, batch_size, epoch_size
        self.num_workers, self.seed, self.augment = num_workers, seed, augment
        self.fraction = fraction

    def make_dataset(self, split: str) -> PairDataset:
        """Create the data set of a split, which must not be empty."""
        dataset = as_pair_dataset(self.dataset(split=split))
        if not len(dataset):
            raise UserError(f"The data set has no pairs for '{split}'.")
        return dataset

    def train_dataloader(self) -> ResumableDataLoader:
        pairs: PairDataset | Subset[Pair] = self.make_dataset("train")
        epoch_size = self.epoch_size or len(pairs)
        if self.fraction != 1 and isinstance(pairs, PairDataset):
            pairs = Subset(pairs, select_training_fraction(pairs, self.fraction))
        sampler_type = NumberedEpochSampler if self.augment else EpochSampler
        sampler = sampler_type(len(pairs), epoch_size, self.seed)
        if self.augment:
            pairs = AugmentedPairs(pairs, self.augment, self.seed)
        return self._make_train_dataloader(monitor_workers(pairs, self.num_workers), sampler)

    def _make_train_dataloader(self, dataset: Any, sampler: EpochSampler) -> ResumableDataLoader:
        return ResumableDataLoader(
            dataset,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate_pairs,
        )

    def make_eval_dataloader(self, split: str) -> DataLoader[Pair]:
        """Return a loader of every pair of a split in order, with a batch size of one."""
        dataset = self.make_dataset(split)
        return DataLoader(
            monitor_workers(dataset, self.num_workers),
            sampler=DistributedEvalSampler(len(dataset)),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader[Pair]:
        return self.make_eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Pair]:
        return self.make_eval_dataloader("test")
