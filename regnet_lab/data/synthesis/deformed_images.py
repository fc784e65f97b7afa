"""Pairs made from single images by a random, known displacement."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import CasePairs, PairDataset
from regnet_lab.data.splits import (
    DEFAULT_SPLITS,
    SplitSpec,
    find_subject_file,
    find_subjects,
    select_subjects,
)
from regnet_lab.data.synthesis.displacements.base import DisplacementGenerator
from regnet_lab.data.synthesis.phantom import sample_normal
from regnet_lab.data.synthesis.phantom_pairs import SPLITS, sample_landmarks
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

ANNOTATION_SUFFIXES = ("_labels", "_mask")
PAIR_STREAM, ORDER_STREAM = 1, 2  # independent random streams of a seed


def make_self_pair(image: Tensor, name: str, spacing: Sequence[float] | None = None) -> Pair:
    """Make an unbatched pair of an image (1, *shape) with itself.

    ``spacing`` is the voxel size in mm, by default 1.
    """
    voxel_size = torch.ones(image.ndim - 1) if spacing is None else torch.tensor(spacing)
    return cast(Pair, {"fixed": image, "moving": image, "spacing": voxel_size, "name": name})


def list_images(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    pattern: str = "{}.nii.gz",
    labels: str | None = None,
    mask: str | None = None,
    splits: SplitSpec = DEFAULT_SPLITS,
) -> CasePairs:
    """List the images of a folder, each paired with itself.

    Args:
        split: ``train``, ``val`` or ``test``, see :func:`regnet_lab.data.splits.select_subjects`.
        root: Folder of the images.
        prepare: Makes a pair of two cases.
        pattern: Path of the images below ``root``; ``{}`` stands for the name of a case.
        labels: Path of the label maps, likewise.
        mask: Path of the masks, likewise.
        splits: Names of each split, or shares.

    Raises:
        UserError: No file matches, or the splits do not fit the names.
    """
    images = find_subjects(root, pattern)

    def make_case(name: str) -> Case:
        labels_path, mask_path = (p and find_subject_file(root, p, name) for p in (labels, mask))
        return Case(name, images[name], labels_path or None, mask_path or None)

    cases = [make_case(name) for name in select_subjects(split, list(images), splits, root)]
    return CasePairs([(case, case) for case in cases], prepare)


class DeformedImages(PairDataset):
    """Images paired with their deformed version: deformed(x) = image(x + u(x)) + noise.

    The deformed image is the fixed and the original the moving image, so that u is the known
    displacement, as in DIRV-Net and RegNet. Labels and masks are deformed likewise. An item is
    determined by (seed, split, index); the images of a split are used cyclically
    in a shuffled order.
    """

    def __init__(
        self,
        split: str,
        images: Callable[..., Any],
        displacement: DisplacementGenerator,
        num_pairs: int | Mapping[str, int] = 64,
        seed: int = 0,
        noise: float = 0.0,
        num_points: int = 0,
        deformed_is_fixed: bool = True,
        displacement_noise: DisplacementGenerator | None = None,
    ) -> None:
        """Set up the data set; pairs are generated on access.

        Args:
            split: ``train``, ``val`` or ``test``.
            images: ``images(split=...)`` makes a data set whose moving images, labels and masks are
                deformed: any data set, or :func:`list_images`.
            displacement: Samples the displacements.
            num_pairs: Number of pairs, for all splits or by split.
            seed: Random seed.
            noise: Standard deviation of normal noise added to the deformed image, in the image's
                unit. RegNet's 5 HU are 0.0012 in images scaled by (HU + 1000) / 4095.
            num_points: Number of landmarks in labeled structures, for images with labels.
            deformed_is_fixed: Use the deformed image as fixed image; otherwise it is the moving
                image and the displacement is inverted.
            displacement_noise: Samples a displacement that is added before warping, but not to the
                known displacement.

        Raises:
            UserError: The split is unknown or has no images.
        """
        if split not in SPLITS:
            raise UserError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
        self.source_dataset = images(split=split)
        if not len(self.source_dataset):
            raise UserError(f"There are no images to deform for '{split}': assign some in splits.")
        self.split, self.displacement, self.seed, self.noise = split, displacement, seed, noise
        self.num_points, self.deformed_is_fixed = num_points, deformed_is_fixed
        self.displacement_noise = displacement_noise
        self.num_pairs = num_pairs.get(split, 0) if isinstance(num_pairs, Mapping) else num_pairs
        self.order = self._make_rng(0, ORDER_STREAM).permutation(len(self.source_dataset))

    def _make_rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, stream])

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < self.num_pairs:
            raise IndexError(f"index {index} is out of range for {self.num_pairs} pairs")
        rng = self._make_rng(index, PAIR_STREAM)
        source = self.source_dataset[int(self.order[index % len(self.order)])]
        shape, spacing = source["moving"].shape[1:], source["spacing"].tolist()
        u = self.displacement(rng, shape, spacing)
        annotations = {
            k: source[f"moving{k}"] for k in ANNOTATION_SUFFIXES if f"moving{k}" in source
        }
        original = {"": source["moving"], **annotations}
        deformed = {"": self._deform_image(rng, source["moving"], u, spacing)}
        for suffix, tensor in annotations.items():
            deformed[suffix] = ops.warp(tensor[None], u, "nearest", "zeros")[0]
        fixed, moving = (deformed, original) if self.deformed_is_fixed else (original, deformed)
        pair = {
            **{f"fixed{suffix}": tensor for suffix, tensor in fixed.items()},
            **{f"moving{suffix}": tensor for suffix, tensor in moving.items()},
            "displacement": (u if self.deformed_is_fixed else ops.invert(u))[0],
            "spacing": source["spacing"],
            "name": f"{source['name']}-{self.split}-{index:05d}",
        }
        return add_landmarks(rng, pair, self.num_points)

    def _deform_image(
        self, rng: np.random.Generator, image: Tensor, u: Tensor, spacing: Sequence[float]
    ) -> Tensor:
        """Warp an image (1, *shape) and add displacement and intensity noise."""
        if self.displacement_noise is not None:
            u = u + self.displacement_noise(rng, image.shape[1:], spacing)
        return ops.warp(image[None], u)[0] + self.noise * sample_normal(rng, image.shape)


def add_landmarks(rng: np.random.Generator, pair: dict, count: int) -> Pair:
    """Add landmarks sampled in the fixed labels, and their displaced positions, to a pair."""
    if count and "fixed_labels" in pair and pair["fixed_labels"].any():
        points = sample_landmarks(rng, pair["fixed_labels"][None].long(), count)
        moved = points + ops.sample_at(pair["displacement"][None], points[None])[0]
        pair = pair | {"fixed_points": points, "moving_points": moved}
    return cast(Pair, pair)
