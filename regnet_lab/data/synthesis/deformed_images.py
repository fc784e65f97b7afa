"""Pairs from single images: one of the two is the other one under a random known displacement."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.case import Case, CasePairs
from regnet_lab.data.splits import SHARES, Splits, file_of, find_subjects, of_split
from regnet_lab.data.synthesis.displacements.base import FieldGenerator
from regnet_lab.data.synthesis.phantom import normal
from regnet_lab.data.synthesis.phantom_pairs import SPLITS, landmarks
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

BELONGINGS = ("_labels", "_mask")  # that an image may have
ITEM, ORDER = 1, 2  # random streams, apart from that of the images, which have seeds alike


def alone(image: Tensor, name: str, spacing: Sequence[float] | None = None) -> Pair:
    """An image (1, *shape) in the form of an unbatched pair, with itself.

    ``spacing`` is its millimetres per voxel; none: 1 mm.
    """
    millimetres = torch.ones(image.ndim - 1) if spacing is None else torch.tensor(spacing)
    return Pair(fixed=image, moving=image, spacing=millimetres, name=name)  # type: ignore[typeddict-item]


def image_files(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    pattern: str = "{}.nii.gz",
    labels: str | None = None,
    mask: str | None = None,
    splits: Splits = SHARES,
) -> CasePairs:
    """The images of a folder, each with itself.

    Args:
        split: ``train``, ``val`` or ``test``, see :func:`regnet_lab.data.splits.of_split`.
        root: The folder.
        prepare: Makes a pair of a case with itself.
        pattern: Path of the images below it, ``{}`` standing for any name.
        labels: The same of their labels, if there are any.
        mask: The same of their masks.
        splits: Which names are for which split.

    Raises:
        UserError: No file has such a path, or the splits do not fit the names.
    """
    found = find_subjects(root, pattern)

    def case(name: str) -> Case:
        own_labels, own_mask = (p and file_of(root, p, name) for p in (labels, mask))
        return Case(name, found[name], own_labels or None, own_mask or None)

    cases = [case(name) for name in of_split(split, list(found), splits, root)]
    return CasePairs([(one, one) for one in cases], prepare)


class Deformed(Dataset[Pair]):
    """Images, each with itself deformed: deformed(x) = image(x + u(x)) + noise.

    The deformed image is the fixed one and the original the moving one, so that u is the known
    displacement (DIRV-Net's swap trick and RegNet's rule), with labels and masks deformed alike.
    An item follows from (seed, split, index); the images of a split are taken in a shuffled order,
    again and again.
    """

    def __init__(
        self,
        split: str,
        images: Callable[..., Any],
        fields: FieldGenerator,
        size: int | Mapping[str, int] = 64,
        seed: int = 0,
        noise: float = 0.0,
        points: int = 0,
        swap: bool = True,
        disturbance: FieldGenerator | None = None,
    ) -> None:
        """Describe the pairs; none is made before it is asked for.

        Args:
            split: ``train``, ``val`` or ``test``.
            images: ``images(split=...)`` gives pairs, the moving images of which, with their labels
                and masks, are to be deformed: any data set, or :func:`image_files`.
            fields: Draws the displacements.
            size: Number of pairs, or of each split by its name.
            seed: Another seed, other pairs.
            noise: Standard deviation of normal noise on the deformed image, in the image's unit: of
                images in [0, 1] made by (HU + 1000) / 4095, RegNet's 5 HU are 0.0012.
            points: Number of landmarks, in labelled structures, of images that have labels.
            swap: False: the deformed image is the moving one, and its field, which leads the other
                way, is inverted.
            disturbance: Draws what is added to the field unknown to the answer.

        Raises:
            UserError: There is no such split, or it has no images.
        """
        if split not in SPLITS:
            raise UserError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
        self.images = images(split=split)
        if not len(self.images):
            raise UserError(f"There are no images to deform for '{split}': give it some in splits.")
        self.split, self.fields, self.seed, self.noise = split, fields, seed, noise
        self.points, self.swap, self.disturbance = points, swap, disturbance
        self.size = size.get(split, 0) if isinstance(size, Mapping) else size
        self.order = self._generator(0, ORDER).permutation(len(self.images))

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, purpose])

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.size:
            raise IndexError(f"pair {index} of {self.size}")
        rng = self._generator(index, ITEM)
        source = self.images[int(self.order[index % len(self.order)])]
        shape, spacing = source["moving"].shape[1:], source["spacing"].tolist()
        u = self.fields(rng, shape, spacing)
        belongings = {k: source[f"moving{k}"] for k in BELONGINGS if f"moving{k}" in source}
        original = {"": source["moving"], **belongings}
        deformed = {"": self._seen(rng, source["moving"], u, spacing)}
        for kind, tensor in belongings.items():
            deformed[kind] = ops.warp(tensor[None], u, "nearest", "zeros")[0]
        fixed, moving = (deformed, original) if self.swap else (original, deformed)
        pair = {
            **{f"fixed{kind}": tensor for kind, tensor in fixed.items()},
            **{f"moving{kind}": tensor for kind, tensor in moving.items()},
            "displacement": (u if self.swap else ops.invert(u))[0],
            "spacing": source["spacing"],
            "name": f"{source['name']}-{self.split}-{index:05d}",
        }
        return with_landmarks(rng, pair, self.points)

    def _seen(
        self, rng: np.random.Generator, image: Tensor, u: Tensor, spacing: Sequence[float]
    ) -> Tensor:
        """The deformed image (1, *shape), disturbed and noisy."""
        if self.disturbance is not None:
            u = u + self.disturbance(rng, image.shape[1:], spacing)
        return ops.warp(image[None], u)[0] + self.noise * normal(rng, image.shape)


def with_landmarks(rng: np.random.Generator, pair: dict, count: int) -> Pair:
    """The unbatched pair with landmarks in its fixed labels and where its displacement leads."""
    if count and "fixed_labels" in pair and pair["fixed_labels"].any():
        points = landmarks(rng, pair["fixed_labels"][None].long(), count)
        moved = points + ops.sample_at(pair["displacement"][None], points[None])[0]
        pair = pair | {"fixed_points": points, "moving_points": moved}
    return Pair(**pair)  # type: ignore[typeddict-item]
