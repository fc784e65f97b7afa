"""Training patches of pairs with known displacement, balanced over classes of its magnitude.

A patch is an ordinary pair: images, known displacement, and a ``fixed_mask`` that is one where the
network's receptive field lies inside the patch, ``margin`` voxels from its faces.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.data.augmentation import Augmentation, AugmentedPairs
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import PairDataset
from regnet_lab.data.displacement_classes import (
    CLASS_RULES,
    draw_balanced_voxels,
    expand_per_axis,
    find_class_voxels,
)
from regnet_lab.data.samplers import DrawNumberSampler, ResumableDataLoader
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

ORDER_STREAM, DRAW_STREAM = 1, 2  # random streams


def crop_box(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """Crop the box of ``size`` voxels from ``start`` out of (C, *spatial); the border is continued
    where the box exceeds it.
    """
    for axis, (first, n) in enumerate(zip(start, size, strict=True), start=1):
        limit = x.shape[axis]
        if first >= 0 and first + n <= limit:
            x = x.narrow(axis, first, n)
        else:
            x = x.index_select(axis, torch.arange(first, first + n).clamp(0, limit - 1))
    return x


@dataclass
class Chunk:
    """Pairs in memory, and the patches drawn from them."""

    pairs: list[Pair]
    image_index: NDArray[np.int64]  # (N,) pair of each patch
    center: NDArray[np.int64]  # (N, D) center of each patch


@dataclass(eq=False, repr=False)
class PatchDataset(PairDataset):
    """An endless sequence of patches; the n-th since training began depends on (seed, n) alone.

    Pairs are taken in a shuffled order, ``images_per_chunk`` at a time.  From each such chunk
    ``images_per_chunk * patches_per_image`` patches are drawn, while the next chunk is prepared in
    the background.
    """

    pairs: PairDataset  # pairs with ``displacement``
    # side of the network's output in the middle of a patch, or one for each axis
    output_size: int | Sequence[int]
    margin: int | Sequence[int]  # voxels around it that the network sees, likewise
    # upper bounds of the classes in millimetres, see
    # :func:`regnet_lab.data.displacement_classes.classify_displacements`
    displacement_thresholds: Sequence[float] = (1.5, 4.0, 8.0)
    class_rule: str = "norm"  # ``norm``, ``all`` or ``any``
    # smallest distance of a patch's center from the faces of the image in voxels, likewise
    border: int | Sequence[int] = 0
    images_per_chunk: int = 5  # pairs in a chunk
    patches_per_image: int = 100  # patches from each pair of a chunk, on average
    seed: int = 0  # seed of the order and of the patches
    augment: Augmentation | None = None  # augmentation of the pairs from which patches are drawn

    def __post_init__(self) -> None:
        if self.class_rule not in CLASS_RULES:
            raise UserError(
                f"class_rule={self.class_rule}: choose one of {', '.join(CLASS_RULES)}."
            )
        self.thresholds = list(self.displacement_thresholds)
        if not self.thresholds or self.thresholds != sorted(self.thresholds):
            raise UserError(
                f"displacement_thresholds={self.thresholds}: "
                "give increasing numbers of millimetres."
            )
        if min(self.images_per_chunk, self.patches_per_image) < 1 or np.min(self.border) < 0:
            raise UserError(
                f"images_per_chunk={self.images_per_chunk}, "
                f"patches_per_image={self.patches_per_image}, border={self.border}: "
                "the first two must be at least 1, and border at least 0."
            )
        self.futures: dict[int, Future[Chunk]] = {}
        self.executor: ThreadPoolExecutor | None = None
        self.process_id = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "futures": {}, "executor": None, "process_id": 0}

    @property
    def patches_per_chunk(self) -> int:
        """Number of patches drawn from one chunk."""
        return self.images_per_chunk * self.patches_per_image

    def __len__(self) -> int:
        """Return the number of patches of one pass through all pairs."""
        return -(-len(self.pairs) // self.images_per_chunk) * self.patches_per_chunk

    def read_pair(self, number: int) -> Pair:
        """Read the ``number``-th pair since training began."""
        epoch, position = divmod(number, len(self.pairs))
        rng = np.random.default_rng([self.seed, ORDER_STREAM, epoch])
        index = int(rng.permutation(len(self.pairs))[position])
        if self.augment is None:
            return self.pairs[index]
        return AugmentedPairs(self.pairs, self.augment, self.seed)[number, index]

    def make_chunk(self, number: int) -> Chunk:
        """Read the pairs of a chunk and draw its patches."""
        first = number * self.images_per_chunk
        pairs = [self.read_pair(n) for n in range(first, first + self.images_per_chunk)]
        if unknown := [p["name"] for p in pairs if "displacement" not in p]:
            raise UserError(
                f"PatchDataset: {unknown[0]} has no known displacement to classify its voxels."
            )
        voxels = [
            find_class_voxels(p, self.thresholds, self.class_rule, self.border) for p in pairs
        ]
        counts = np.array([[len(c) for c in image] for image in voxels])
        if not counts.any():
            raise UserError(
                f"PatchDataset: no voxel of {pairs[0]['name']} and {self.images_per_chunk - 1} "
                f"others lies border={self.border} voxels inside the image, in its mask and in a "
                f"class of displacement_thresholds={self.thresholds}: lower border or raise the "
                "last threshold."
            )
        rng = np.random.default_rng([self.seed, DRAW_STREAM, number])
        draws = draw_balanced_voxels(rng, counts, self.patches_per_chunk)
        flat = [(i, int(voxels[i][c][k])) for i, c, k in draws.tolist()]
        center = [np.unravel_index(k, pairs[i]["fixed"].shape[1:]) for i, k in flat]
        return Chunk(pairs, draws[:, 0], np.array(center))

    def get_chunk(self, number: int) -> Chunk:
        """Return a chunk and start to prepare the next one."""
        if self.executor is None or self.process_id != os.getpid():  # threads do not survive a fork
            self.executor, self.process_id = ThreadPoolExecutor(1), os.getpid()
            self.futures = {}
        self.futures = {n: f for n, f in self.futures.items() if n in (number, number + 1)}
        for n in (number, number + 1):
            if n not in self.futures:
                self.futures[n] = self.executor.submit(self.make_chunk, n)
        return self.futures[number].result()

    def __getitem__(self, number: int) -> Pair:
        chunk_number, k = divmod(number, self.patches_per_chunk)
        chunk = self.get_chunk(chunk_number)
        pair: dict[str, Any] = dict(chunk.pairs[chunk.image_index[k]])
        center = chunk.center[k].tolist()
        output, margin = (expand_per_axis(n, len(center)) for n in (self.output_size, self.margin))
        size = [n + 2 * m for n, m in zip(output, margin, strict=True)]
        start = [c - n // 2 - m for c, n, m in zip(center, output, margin, strict=True)]
        keys = ("fixed", "moving", "displacement")
        patch = {key: crop_box(pair[key], start, size) for key in keys}
        mask = torch.zeros(1, *size)
        inner = tuple(slice(m, m + n) for n, m in zip(output, margin, strict=True))
        mask[(slice(None), *inner)] = 1
        name = f"{pair['name']}-{'-'.join(map(str, center))}"
        return cast(Pair, {**patch, "fixed_mask": mask, "spacing": pair["spacing"], "name": name})


class PatchDataModule(PairDataModule):
    """Data loaders that train on patches and evaluate on whole images.

    Args:
        patches: ``patches(pairs=..., seed=..., augment=...)`` creates a :class:`PatchDataset` of
            the training pairs; null: train on whole images, too.
        **more: As in :class:`regnet_lab.data.datamodule.PairDataModule`; ``epoch_size`` counts
            patches.  ``num_workers: 1`` moves all work to another process; each further one would
            prepare all chunks again.
    """

    def __init__(self, patches: Callable[..., PatchDataset] | None, **more: Any) -> None:
        super().__init__(**more)
        self.patches = patches

    def train_dataloader(self) -> ResumableDataLoader:
        if self.patches is None:
            return super().train_dataloader()
        pairs = self.make_dataset("train")
        dataset = self.patches(pairs=pairs, seed=self.seed, augment=self.augment)
        epoch_size = self.epoch_size or len(dataset)
        sampler = DrawNumberSampler(epoch_size, epoch_size, self.seed)
        return self._make_train_dataloader(dataset, sampler)
