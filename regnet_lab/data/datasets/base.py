"""What a data set lists: the pairs of cases of every split, and of every part of a mixture."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from regnet_lab.data.case import Case
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

Couple = tuple[Case, Case]  # fixed and moving


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Put the sentence of an error of the user's into a list and go on behind the block."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


@dataclass(frozen=True, eq=False)
class Listing:
    """One data set of a split, and its name where it is part of a mixture."""

    split: str
    part: str
    dataset: Dataset[Pair]

    @cached_property
    def pairs(self) -> list[Couple]:
        """Its pairs of cases; none where it is no list of files."""
        pairs = getattr(self.dataset, "pairs", None)
        return pairs if isinstance(pairs, list) and pairs and isinstance(pairs[0][0], Case) else []

    @cached_property
    def cases(self) -> list[Case]:
        """Its cases, each once."""
        return list(dict.fromkeys(chain.from_iterable(self.pairs)))

    @cached_property
    def images(self) -> list[Path]:
        """The images of its cases, each once."""
        return list(dict.fromkeys(case.image for case in self.cases))

    @property
    def prepare(self) -> Any:
        """What makes a pair of two cases."""
        return getattr(self.dataset, "prepare", None)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The grid on which all cases are prepared, if there is one."""
        return getattr(self.prepare, "shape", None)

    @property
    def room(self) -> float:
        """Megabytes that the cache of what was prepared keeps."""
        return getattr(getattr(self.prepare, "cache", None), "megabytes", math.inf)

    @property
    def title(self) -> str:
        """The split, and the part of a mixture."""
        return f"{self.split} {self.part}".strip()

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


def leaves(split: str, name: str, dataset: Any) -> Iterator[Listing]:
    """The data sets that a mixture is made of, or the one it is and the files it deforms."""
    for inner, part in getattr(dataset, "parts", {}).items():
        yield from leaves(split, f"{name} {inner}".strip(), part)
    if not hasattr(dataset, "parts"):
        yield Listing(split, name, dataset)
    if isinstance(source := getattr(dataset, "images", None), Dataset):
        below = leaves(split, f"{name} images".strip(), source)
        yield from (listing for listing in below if listing.pairs)


def list_all(
    dataset: Callable[..., Any], splits: Sequence[str], faults: list[str]
) -> list[Listing]:
    """Make the data set of every split, each part of a mixture on its own: one that cannot be
    listed does not hide the others.
    """
    sources = getattr(dataset, "keywords", {}).get("datasets") or {"": dataset}
    found: list[Listing] = []
    for split in splits:
        before, listed = len(faults), len(found)
        for name, source in sources.items():
            with noted(faults):
                found += leaves(split, name, source(split=split))
        if len(faults) == before and not any(map(len, found[listed:])):
            faults.append(f"The data set has no pairs for '{split}'.")
    return found
