"""The images of a data set, each once and all on one grid: what an atlas is made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab.data.case import Case, CasePairs
from regnet_lab.data.datasets.csv_pairs import NamedPairs
from regnet_lab.data.preprocessing.grids import Grid
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.types import Pair

SIDES = ("fixed", "moving")


@dataclass(frozen=True)
class Subject:
    """One image, a batch of one."""

    name: str
    image: Tensor  # (1, 1, *spatial)
    labels: Tensor | None = None  # (1, 1, *spatial) integers


@dataclass(frozen=True)
class Population(Sequence[Subject]):
    """Images that are read when they are asked for.

    Args:
        names: One for each image.
        load: Makes the subject of an index.
        affine: (4, 4) from voxels of the common grid to millimetres, RAS+.
        spacing: (1, D) millimetres per voxel.
    """

    names: list[str]
    load: Callable[[int], Subject]
    affine: coordinates.Matrix
    spacing: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.load(range(len(self))[index])


def population(dataset: Dataset[Pair]) -> Population:
    """The images that occur in the pairs of a data set.

    Of listed files all are prepared on the grid of the first fixed one, through world coordinates
    where the data set's preparation is :class:`regnet_lab.data.preprocessing.grids.WorldGrid`. Any other data set
    gives both images of its pairs, voxel 0 lying at 0 mm, those that are equal only once.

    Raises:
        UserError: There is only one image, or they are on several grids.
    """
    listed = type(dataset) in (CasePairs, NamedPairs) and isinstance(dataset.prepare, Grid)  # type: ignore[attr-defined]
    found = of_cases(dataset.pairs, dataset.prepare) if listed else of_pairs(dataset)  # type: ignore[attr-defined]
    if len(found) < 2:
        raise UserError(
            f"an atlas needs at least two images, but the pairs hold only {found.names[0]}: "
            "choose another split or other data."
        )
    return found


def of_cases(pairs: Sequence[tuple[Case, Case]], grid: Grid) -> Population:
    """The cases of a listing on the grid of the first; a case of the same image is the same."""
    by_image: dict[object, Case] = {}
    for case in chain.from_iterable(pairs):
        by_image.setdefault((case.image, case.phase, case.slice), case)
    cases = list(by_image.values())
    first = cases[0]

    def load(index: int) -> Subject:
        arrays = grid.prepared(cases[index], first)
        found = {key: batch(arrays[key]) for key in ("", "_labels") if key in arrays}
        return Subject(cases[index].name, found[""], found.get("_labels"))

    spacing = batch(grid.prepared(first, first)["spacing"])
    return Population([case.name for case in cases], load, grid.affine(first), spacing)


def batch(array: NDArray) -> Tensor:
    """A copy of an array of the cache as a batch of one."""
    return torch.from_numpy(array.copy())[None]


def of_pairs(dataset: Dataset[Pair]) -> Population:
    """Both images of every pair that differ from all before.

    Raises:
        UserError: Their shapes differ.
    """
    places: dict[str, tuple[int, str]] = {}
    names, shapes = [], set()
    for index in range(len(dataset)):  # type: ignore[arg-type]
        pair = dataset[index]
        for side in SIDES:
            image = pair[side]  # type: ignore[literal-required]
            key = blake2b(image.numpy().tobytes()).hexdigest()
            if key not in places:
                places[key] = (index, side)
                names.append(f"{pair['name']}-{side}")
                shapes.add(tuple(image.shape[1:]))
    if len(shapes) > 1:
        raise UserError(
            f"an atlas needs images on one grid, but these have {len(shapes)} shapes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: set the shape of the data's grid."
        )
    listed = list(places.values())

    def load(index: int) -> Subject:
        item, side = listed[index]
        pair: dict = dict(dataset[item])
        labels = pair.get(f"{side}_labels")
        return Subject(names[index], pair[side][None], None if labels is None else labels[None])

    spacing = dataset[0]["spacing"][None]
    scale = np.diag([*spacing[0].tolist(), 1.0])
    return Population(names, load, coordinates.embedded(scale), spacing)
