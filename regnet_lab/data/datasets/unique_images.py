"""The images of a data set, each once and all on one grid, as atlas construction needs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.data.case import Case, CasePair
from regnet_lab.data.datasets.base import CasePairs, as_pair_dataset
from regnet_lab.data.preprocessing.grids import PairPreprocessor
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

SIDES = ("fixed", "moving")


@dataclass(frozen=True)
class UniqueImage:
    """One image as a batch of one."""

    name: str
    image: Tensor  # (1, 1, *spatial)
    labels: Tensor | None = None  # (1, 1, *spatial) integers


@dataclass(frozen=True)
class UniqueImages(Sequence[UniqueImage]):
    """Images that are read when they are requested."""

    names: list[str]  # one for each image
    load: Callable[[int], UniqueImage]  # function that reads the image of an index
    affine: coordinates.Matrix  # (4, 4) from voxels of the common grid to millimetres, RAS+
    spacing: Tensor  # (1, D) millimetres per voxel

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.load(range(len(self))[index])


def collect_unique_images(dataset: Any) -> UniqueImages:
    """Collect the images that occur in the pairs of a data set, each once.

    Files are all preprocessed to the grid of the first fixed image, through world coordinates if
    the data set is preprocessed by
    :class:`regnet_lab.data.preprocessing.grids.ResampleToFixed`.  Other data sets give both images
    of their pairs, with voxel 0 at 0 mm.
    """
    pairs = as_pair_dataset(dataset)
    if type(pairs) is CasePairs and isinstance(pairs.prepare, PairPreprocessor):
        images = collect_from_cases(pairs.case_pairs, pairs.prepare)
    else:
        images = collect_from_pairs(pairs)
    if len(images) < 2:
        raise UserError(
            f"an atlas needs at least two images, but the pairs hold only {images.names[0]}: "
            "choose another split or other data."
        )
    return images


def collect_from_cases(
    case_pairs: Sequence[CasePair], preprocessor: PairPreprocessor
) -> UniqueImages:
    """Collect the cases on the grid of the first one; the same part of an image counts once."""
    by_image: dict[object, Case] = {}
    for case in chain.from_iterable(case_pairs):
        by_image.setdefault((case.image, case.phase, case.slice), case)
    cases = list(by_image.values())
    first = cases[0]

    def load(index: int) -> UniqueImage:
        arrays = preprocessor.load_side(cases[index], first)
        labels = to_batch(arrays["labels"]) if "labels" in arrays else None
        return UniqueImage(cases[index].name, to_batch(arrays["image"]), labels)

    spacing = to_batch(preprocessor.load_side(first, first)["spacing"])
    names = [case.name for case in cases]
    return UniqueImages(names, load, preprocessor.compute_affine(first), spacing)


def to_batch(array: NDArray) -> Tensor:
    """Copy a cached array to a batch of one."""
    return torch.from_numpy(array.copy())[None]


def collect_from_pairs(dataset: Any) -> UniqueImages:
    """Collect both images of every pair, without repetitions of equal images."""
    locations: dict[str, tuple[int, str]] = {}  # index and side by hash
    names, shapes = [], set()
    for index in range(len(dataset)):
        pair: dict[str, Any] = dict(dataset[index])
        for side in SIDES:
            image = pair[side]
            key = blake2b(image.numpy().tobytes()).hexdigest()
            if key not in locations:
                locations[key] = (index, side)
                names.append(f"{pair['name']}-{side}")
                shapes.add(tuple(image.shape[1:]))
    if len(shapes) > 1:
        raise UserError(
            f"an atlas needs images on one grid, but these have {len(shapes)} shapes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: set the shape of the data's grid."
        )
    listed = list(locations.values())

    def load(index: int) -> UniqueImage:
        item, side = listed[index]
        pair: dict[str, Any] = dict(dataset[item])
        labels = pair.get(f"{side}_labels")
        return UniqueImage(names[index], pair[side][None], None if labels is None else labels[None])

    spacing = dataset[0]["spacing"][None]
    scale = np.diag([*spacing[0].tolist(), 1.0])
    return UniqueImages(names, load, coordinates.embed_in_3d(scale), spacing)
