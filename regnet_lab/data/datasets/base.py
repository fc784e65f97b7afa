"""Base classes of data sets of image pairs, and their inspection split by split."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

from regnet_lab.data.case import Case, CasePair
from regnet_lab.data.preprocessing.grids import PairPreprocessor
from regnet_lab.data.splits import SPLITS
from regnet_lab.errors import UserError
from regnet_lab.types import Pair, update_pair

Prepare = Callable[[Case, Case], Pair]


class PairDataset(Dataset[Pair], ABC):
    """A map-style data set of unbatched pairs.

    A subclass defines ``__len__`` and ``__getitem__``.  The attributes say where the pairs come
    from; their defaults are right for pairs that are generated in memory.

    Attributes:
        case_pairs: Fixed and moving case of every item; empty if pairs are not read from files.
        prepare: Function that reads two cases and returns a pair; None without ``case_pairs``.
        parts: Data sets by name that a mixture consists of.
        source_dataset: Data set whose images are deformed to make pairs.
    """

    case_pairs: Sequence[CasePair] = ()
    prepare: Prepare | None = None
    parts: Mapping[str, "PairDataset"] = MappingProxyType({})
    source_dataset: Any = None  # PairDataset or another data set of pairs

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Any) -> Pair: ...

    def describe_item(self, index: int) -> str:
        """Return the image files of a pair, or its number if it has none, without reading it."""
        if not self.case_pairs:
            return f"pair {index}"
        return " and ".join(str(case.image) for case in self.case_pairs[index])


class CasePairs(PairDataset):
    """Pairs of cases, each read by ``prepare(fixed, moving)`` when it is requested.

    ``names`` are those of the pairs; None keeps the names that ``prepare`` gives.
    """

    def __init__(
        self,
        case_pairs: Sequence[CasePair],
        prepare: Prepare,
        names: Sequence[str] | None = None,
    ) -> None:
        self.case_pairs: Sequence[CasePair] = case_pairs
        self.prepare: Prepare = prepare
        self.names = names

    def __len__(self) -> int:
        return len(self.case_pairs)

    def __getitem__(self, index: int) -> Pair:
        pair = self.prepare(*self.case_pairs[index])
        return pair if self.names is None else update_pair(pair, name=self.names[index])


class GeneratedPairs(PairDataset):
    """Pairs made on access by :meth:`make_pair`, each determined by (seed, split, index).

    Attributes:
        split: ``train``, ``val`` or ``test``; splits have no pairs in common.
        seed: Random seed.
        num_pairs: Number of pairs, for all splits or by split.
        unit: What the items are, for messages.
    """

    split: str
    seed: int
    num_pairs: int | Mapping[str, int]
    unit = "pairs"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"split={self.split!r} is unknown: choose one of {', '.join(SPLITS)}.")

    def __len__(self) -> int:
        if isinstance(self.num_pairs, Mapping):
            return self.num_pairs.get(self.split, 0)
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} {self.unit}")
        return self.make_pair(index)

    @abstractmethod
    def make_pair(self, index: int) -> Pair:
        """Make the pair of an index that is in range."""

    def make_rng(self, *numbers: int) -> np.random.Generator:
        """Make the random generator of an item or stream of this split."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), *numbers])


class _PlainPairs(PairDataset):
    """Any other data set of pairs, with the defaults of :class:`PairDataset`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        return self.dataset[index]


def as_pair_dataset(dataset: Any) -> PairDataset:
    """Return ``dataset``, wrapped if it is a plain PyTorch data set of pairs."""
    return dataset if isinstance(dataset, PairDataset) else _PlainPairs(dataset)


def describe_item(dataset: Any, index: int) -> str:
    """Describe a pair as :meth:`PairDataset.describe_item`, whatever kind of data set it is in."""
    if isinstance(dataset, Subset):
        return describe_item(dataset.dataset, dataset.indices[index])
    return dataset.describe_item(index) if isinstance(dataset, PairDataset) else f"pair {index}"


@contextmanager
def collect_errors(messages: list[str]) -> Iterator[None]:
    """Append the message of a UserError inside the block to ``messages`` and continue after it."""
    try:
        yield
    except UserError as error:
        messages.append(str(error))


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """One split of a data set, or of one part of a mixture."""

    split: str
    part: str  # name in a mixture; empty for other data sets
    dataset: PairDataset

    @cached_property
    def case_pairs(self) -> list[CasePair]:
        """Fixed and moving case of every item; empty if the pairs are not read from files."""
        return list(self.dataset.case_pairs)

    @cached_property
    def cases(self) -> list[Case]:
        """The cases of all pairs, each once."""
        return list(dict.fromkeys(chain.from_iterable(self.case_pairs)))

    @cached_property
    def images(self) -> list[Path]:
        """The image files of all cases, each once."""
        return list(dict.fromkeys(case.image for case in self.cases))

    @property
    def preprocessor(self) -> PairPreprocessor | None:
        """Return the preprocessor of the cases, if it is one of this project."""
        prepare = self.dataset.prepare
        return prepare if isinstance(prepare, PairPreprocessor) else None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The common grid of all pairs, if there is one."""
        return self.preprocessor.shape if self.preprocessor else None

    @property
    def cache_megabytes(self) -> float:
        """The size to which the cache of preprocessed cases is limited."""
        return self.preprocessor.cache.megabytes if self.preprocessor else math.inf

    @property
    def title(self) -> str:
        """The split and, in a mixture, the part."""
        return f"{self.split} {self.part}".strip()

    def __len__(self) -> int:
        return len(self.dataset)


def iterate_leaf_datasets(split: str, part: str, dataset: PairDataset) -> Iterator[DatasetSplit]:
    """Yield the data sets that a mixture consists of, or the data set itself, and the files from
    which its pairs are generated.
    """
    for name, inner in dataset.parts.items():
        yield from iterate_leaf_datasets(split, f"{part} {name}".strip(), inner)
    if not dataset.parts:
        yield DatasetSplit(split, part, dataset)
    if dataset.source_dataset is not None:
        source = as_pair_dataset(dataset.source_dataset)
        leaves = iterate_leaf_datasets(split, f"{part} images".strip(), source)
        yield from (leaf for leaf in leaves if leaf.case_pairs)


def list_dataset_splits(
    dataset: Callable[..., Any], splits: Sequence[str], messages: list[str]
) -> list[DatasetSplit]:
    """Create the data set of every split with ``dataset(split=...)``, and collect the errors.

    The parts of a mixture are created one by one, so that an error in one does not hide the others.
    """
    arguments = dataset.keywords if isinstance(dataset, partial) else {}
    factories = arguments.get("datasets") or {"": dataset}
    dataset_splits: list[DatasetSplit] = []
    for split in splits:
        num_messages, num_splits = len(messages), len(dataset_splits)
        for name, factory in factories.items():
            with collect_errors(messages):
                pairs = as_pair_dataset(factory(split=split))
                dataset_splits += iterate_leaf_datasets(split, name, pairs)
        if len(messages) == num_messages and not any(map(len, dataset_splits[num_splits:])):
            messages.append(f"The data set has no pairs for '{split}'.")
    return dataset_splits
