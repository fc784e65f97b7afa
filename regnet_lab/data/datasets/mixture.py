"""Several data sets as one, for joint training."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from regnet_lab.errors import UserError
from regnet_lab.types import Pair


class Mixed(Dataset[Pair]):
    """Several data sets as one: balanced in training, one after another otherwise.

    In training, index i is item (i // n) mod len(d) of data set d = i mod n of the n data sets, so
    that each is drawn equally often whatever its size, and the largest once in full. The name of a
    pair begins with that of its data set. Where grids or keys differ, batches must have size 1.

    Args:
        split: ``train``, ``val`` or ``test``.
        datasets: By name; each is called as ``dataset(split=...)``.

    Raises:
        UserError: There is none, or one that has nothing to train on.
    """

    def __init__(self, split: str, datasets: Mapping[str, Callable[..., Any]]) -> None:
        if not datasets:
            raise UserError("Mixed: name at least one data set below 'datasets'.")
        self.parts = {name: dataset(split=split) for name, dataset in datasets.items()}
        self.balanced = split == "train"
        for name, part in self.parts.items():
            if self.balanced and not len(part):
                raise UserError(f"The data set '{name}' has no pairs to train on.")

    @property
    def sizes(self) -> list[int]:
        """Pairs in each of the data sets."""
        return [len(part) for part in self.parts.values()]

    def __len__(self) -> int:
        return len(self.sizes) * max(self.sizes) if self.balanced else sum(self.sizes)

    def __getitem__(self, index: int) -> Pair:
        name, item = self.place(index)
        pair = self.parts[name][item]
        return Pair(**{**pair, "name": f"{name}_{pair['name']}"})  # type: ignore[typeddict-item]

    def place(self, index: int) -> tuple[str, int]:
        """The data set that an index stands for, and the item in it.

        Raises:
            IndexError: The index is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        if self.balanced:
            item, part = divmod(index, len(self.sizes))
            item %= self.sizes[part]
        else:
            part = bisect_right(list(accumulate(self.sizes)), index)
            item = index - sum(self.sizes[:part])
        return list(self.parts)[part], item
