"""Pairs made from single images by a random, known displacement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.random import Generator
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import CasePairs, GeneratedPairs, Prepare
from regnet_lab.data.splits import (
    DEFAULT_SPLITS,
    SplitSpec,
    find_optional_file,
    find_subjects,
    select_subjects,
)
from regnet_lab.data.synthesis.displacements.base import DisplacementGenerator
from regnet_lab.data.synthesis.phantom import sample_normal
from regnet_lab.data.synthesis.phantom_pairs import sample_landmarks
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

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
    prepare: Prepare,
    pattern: str = "{}.nii.gz",
    labels: str | None = None,
    mask: str | None = None,
    splits: SplitSpec = DEFAULT_SPLITS,
) -> CasePairs:
    """List the images of a folder, each paired with itself.

    ``pattern``, ``labels`` and ``mask`` are paths of images, label maps and masks below ``root``,
    where ``{}`` stands for the name of a case; ``splits`` divides the names
    (:func:`regnet_lab.data.splits.select_subjects`).
    """
    images = find_subjects(root, pattern)
    cases = [
        Case(n, images[n], find_optional_file(root, labels, n), find_optional_file(root, mask, n))
        for n in select_subjects(split, list(images), splits, root)
    ]
    return CasePairs([(case, case) for case in cases], prepare)


@dataclass(eq=False, repr=False)
class DeformedImages(GeneratedPairs):
    """Images paired with their deformed version: deformed(x) = image(x + u(x)) + noise.

    The deformed image is the fixed and the original the moving image, so that u is the known
    displacement, as in DIRV-Net and RegNet. Labels and masks are deformed likewise. The images of
    a split are used cyclically in a shuffled order.
    """

    split: str  # ``train``, ``val`` or ``test``
    # ``images(split=...)`` makes a data set whose moving images, labels and masks are deformed: any
    # data set, or :func:`list_images`
    images: Callable[..., Any]
    displacement: DisplacementGenerator  # samples the displacements
    num_pairs: int | Mapping[str, int] = 64  # number of pairs, for all splits or by split
    seed: int = 0
    # standard deviation of normal noise added to the deformed image, in the image's unit. RegNet's
    # 5 HU are 0.0012 in images scaled by (HU + 1000) / 4095
    noise: float = 0.0
    num_points: int = 0  # number of landmarks in labeled structures, for images with labels
    # use the deformed image as fixed image; otherwise it is the moving image and the displacement
    # is inverted
    deformed_is_fixed: bool = True
    # samples a displacement that is added before warping, but not to the known displacement
    displacement_noise: DisplacementGenerator | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source_dataset = self.images(split=self.split)
        if not len(self.source_dataset):
            raise UserError(
                f"There are no images to deform for '{self.split}': assign some in splits."
            )
        self.order = self.make_rng(0, ORDER_STREAM).permutation(len(self.source_dataset))

    def make_pair(self, index: int) -> Pair:
        rng = self.make_rng(index, PAIR_STREAM)
        source = self.source_dataset[int(self.order[index % len(self.order)])]
        shape, spacing = source["moving"].shape[1:], source["spacing"].tolist()
        u = self.displacement(rng, shape, spacing)
        warped_by = u
        if self.displacement_noise is not None:
            warped_by = u + self.displacement_noise(rng, shape, spacing)
        noise = self.noise * sample_normal(rng, source["moving"].shape)
        original = "moving" if self.deformed_is_fixed else "fixed"
        deformed = "fixed" if self.deformed_is_fixed else "moving"
        pair = {
            original: source["moving"],
            deformed: ops.warp(source["moving"][None], warped_by)[0] + noise,
            "displacement": (u if self.deformed_is_fixed else ops.invert(u))[0],
            "spacing": source["spacing"],
            "name": f"{source['name']}-{self.split}-{index:05d}",
        }
        for kind in ("labels", "mask"):
            if f"moving_{kind}" in source:
                annotation = source[f"moving_{kind}"]
                pair[f"{original}_{kind}"] = annotation
                pair[f"{deformed}_{kind}"] = ops.warp(annotation[None], u, "nearest", "zeros")[0]
        return add_landmarks(rng, pair, pair.get("fixed_labels"), self.num_points)


def add_landmarks(
    rng: Generator, pair: dict[str, Any], structures: Tensor | None, count: int
) -> Pair:
    """Add landmarks in structures (1, *shape) of the fixed image, and their displaced positions."""
    if count and structures is not None and structures.any():
        points = sample_landmarks(rng, structures[None].long(), count)
        moved = points + ops.sample_at(pair["displacement"][None], points[None])[0]
        pair = pair | {"fixed_points": points, "moving_points": moved}
    return cast(Pair, pair)
