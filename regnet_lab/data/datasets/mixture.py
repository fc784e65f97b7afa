"""Several data sets as one, for joint training."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from regnet_lab.data.datasets.base import PairDataset, as_pair_dataset
from regnet_lab.errors import UserError
from regnet_lab.types import Pair, update_pair


class Mixture(PairDataset):
    """Several data sets ``datasets[name](split=...)``: balanced in training, else concatenated.

    In training, index i is item (i // n) mod len(d) of data set d = i mod n of the n data sets:
    each data set is drawn equally often, and an epoch shows every pair of the largest once.  The
    name of a pair starts with that of its data set.  Where grids or keys differ, the batch size
    must be 1.
    """

    def __init__(self, split: str, datasets: Mapping[str, Callable[..., Any]]) -> None:
        if not datasets:
            raise UserError("Mixture: name at least one data set below 'datasets'.")
        self.parts = {
            name: as_pair_dataset(dataset(split=split)) for name, dataset in datasets.items()
        }
        self.balanced = split == "train"
        for name, part in self.parts.items():
            if self.balanced and not len(part):
                raise UserError(f"The data set '{name}' has no pairs to train on.")

    @property
    def sizes(self) -> list[int]:
        """Number of pairs of each data set."""
        return [len(part) for part in self.parts.values()]

    def __len__(self) -> int:
        return len(self.sizes) * max(self.sizes) if self.balanced else sum(self.sizes)

    def __getitem__(self, index: int) -> Pair:
        name, item = self.locate(index)
        pair = self.parts[name][item]
        return update_pair(pair, name=f"{name}_{pair['name']}")

    def locate(self, index: int) -> tuple[str, int]:
        """Return the name of the data set that holds a pair, and the index of the pair in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        if self.balanced:
            item, part = divmod(index, len(self.sizes))
            item %= self.sizes[part]
        else:
            part = bisect_right(list(accumulate(self.sizes)), index)
            item = index - sum(self.sizes[:part])
        return list(self.parts)[part], item

    def describe_item(self, index: int) -> str:
        name, item = self.locate(index)
        return self.parts[name].describe_item(item)
