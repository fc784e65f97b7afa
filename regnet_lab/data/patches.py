"""Patches of pairs whose displacement is known, as many of small as of large displacements.

A patch is a pair like any other: images, known displacement, and a ``fixed_mask`` that is one where
the network can answer without knowing what lies outside the patch, ``margin`` voxels off its faces.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from regnet_lab.data.augmentation import Augment, Augmented
from regnet_lab.data.datamodule import EpochSampler, PairModule, ResumableLoader
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

Size = Callable[[Tensor], Tensor]  # of displacements (D, N), (N,)

ORDER, DRAW = 1, 2  # random streams


def smallest(u: Tensor) -> Tensor:
    """Of the absolute components."""
    return u.abs().amin(0)


def largest(u: Tensor) -> Tensor:
    """Of the absolute components."""
    return u.abs().amax(0)


def length(u: Tensor) -> Tensor:
    """Euclidean."""
    return u.square().sum(0).sqrt()


RULES: dict[str, tuple[Size, Size]] = {
    "all": (smallest, largest),
    "any": (largest, largest),
    "norm": (length, length),
}


def classes(u: Tensor, thresholds: Sequence[float], rule: str) -> Tensor:
    """Class of every voxel by the size of its displacement; -1: none.

    Class c lies between the thresholds c - 1 (included; 0 for the first) and c (excluded).

    Args:
        u: (D, *spatial) millimetres.
        thresholds: Rising, millimetres, one for each class.
        rule: ``all`` components within the bounds in absolute value, as RegNet published in 3D,
            which leaves out every voxel whose components differ much; ``any``, as in 2D: none above
            the upper, one above the lower bound; ``norm``: the length, and the last class has no
            upper bound, so that no voxel is left out.

    Returns:
        (*spatial) int8.
    """
    bounds = torch.tensor(thresholds, dtype=u.dtype)
    low, high = (torch.bucketize(size(u), bounds, right=True) for size in RULES[rule])
    if rule == "norm":
        return high.clamp(max=len(bounds) - 1).to(torch.int8)
    return torch.where((low == high) & (high < len(bounds)), high, -1).to(torch.int8)


def places(
    pair: Pair, thresholds: Sequence[float], rule: str, border: int | Sequence[int]
) -> list[Tensor]:
    """Flat indices of the voxels of every class, ``border`` voxels off the image's faces and in
    the fixed mask, if there is one.
    """
    u = pair["displacement"]
    found = classes(u * pair["spacing"].view(-1, *[1] * (u.ndim - 1)), thresholds, rule)
    inner = torch.zeros_like(found, dtype=torch.bool)
    off = per_axis(border, found.ndim)
    inner[tuple(slice(b, n - b) for b, n in zip(off, found.shape, strict=True))] = True
    if "fixed_mask" in pair:
        inner &= pair["fixed_mask"][0] > 0
    found[~inner] = -1
    flat = found.flatten()
    return [torch.nonzero(flat == c)[:, 0].int() for c in range(len(thresholds))]


def balanced(rng: np.random.Generator, counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """``total`` draws (N, 3) of image, class and number of the voxel therein, shuffled.

    Every class that has voxels is drawn equally often, up to one, and every voxel of a class
    equally likely, over all images; with replacement.

    Args:
        rng: Source of the draws.
        counts: (images, classes) voxels.
        total: Draws.
    """
    present = np.flatnonzero(counts.sum(0))
    share = np.full(len(present), total // len(present))
    share[: total % len(present)] += 1
    drawn = []
    for c, n in zip(present, share, strict=True):
        last = counts[:, c].cumsum()
        number = rng.integers(0, last[-1], n)
        image = np.searchsorted(last, number, side="right")
        drawn.append(np.stack([image, np.full(n, c), number - (last - counts[:, c])[image]], 1))
    return rng.permutation(np.concatenate(drawn))


def cut(x: Tensor, start: Sequence[int], side: Sequence[int]) -> Tensor:
    """The box of ``side`` voxels from ``start`` in (C, *spatial), whose border continues beyond."""
    for axis, (first, n) in enumerate(zip(start, side, strict=True), start=1):
        limit = x.shape[axis]
        if first >= 0 and first + n <= limit:
            x = x.narrow(axis, first, n)
        else:
            x = x.index_select(axis, torch.arange(first, first + n).clamp(0, limit - 1))
    return x


def per_axis(number: int | Sequence[int], ndim: int) -> Sequence[int]:
    """One number for each axis."""
    return [number] * ndim if isinstance(number, int) else number


@dataclass
class Chunk:
    """Pairs in memory, and where in them the patches lie."""

    pairs: list[Pair]
    image: NDArray[np.int64]  # (N,)
    centre: NDArray[np.int64]  # (N, D)


class Patches(Dataset[Pair]):
    """Patches without end, the n-th since training began being a function of (seed, n) alone.

    Pairs are taken in a shuffled order, ``images`` at a time; from each such chunk ``images x
    samples`` patches are drawn.  While one chunk is used, the next is made in the background.

    Args:
        pairs: With ``displacement``.
        output: Side of the answer in the middle of a patch, or one for each axis.
        margin: Voxels around it that the network looks at, likewise.
        thresholds: Of the classes, :func:`classes`, mm.
        rule: ``norm``, ``all`` or ``any``.
        border: Distance of a patch's centre from the faces of its image, voxels, likewise.
        images: Pairs in a chunk.
        samples: Patches from each pair of a chunk, on average.
        seed: Another seed, other patches.
        augment: Changes pairs before patches are cut from them.

    Raises:
        UserError: A setting is impossible.
    """

    def __init__(
        self,
        pairs: Dataset[Pair],
        output: int | Sequence[int],
        margin: int | Sequence[int],
        thresholds: Sequence[float] = (1.5, 4.0, 8.0),
        rule: str = "norm",
        border: int | Sequence[int] = 0,
        images: int = 5,
        samples: int = 100,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        if rule not in RULES:
            raise UserError(f"rule={rule}: choose one of {', '.join(RULES)}.")
        if not thresholds or list(thresholds) != sorted(thresholds):
            raise UserError(f"thresholds={list(thresholds)}: give rising numbers of millimetres.")
        if min(images, samples) < 1 or np.min(border) < 0:
            raise UserError(
                f"images={images}, samples={samples}, border={border}: give at least one image and "
                "one sample, and nothing negative."
            )
        self.pairs, self.output, self.margin = pairs, output, margin
        self.thresholds, self.rule, self.border = list(thresholds), rule, border
        self.images, self.samples, self.seed, self.augment = images, samples, seed, augment
        self.made: dict[int, Future[Chunk]] = {}
        self.worker: ThreadPoolExecutor | None = None
        self.process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "made": {}, "worker": None, "process": 0}

    def __len__(self) -> int:
        """Patches in a pass through all pairs."""
        return -(-len(self.pairs) // self.images) * self.images * self.samples  # type: ignore

    def source(self, number: int) -> Pair:
        """The ``number``-th pair since training began."""
        turn, place = divmod(number, len(self.pairs))  # type: ignore[arg-type]
        order = np.random.default_rng([self.seed, ORDER, turn]).permutation(len(self.pairs))  # type: ignore
        index = int(order[place])
        if self.augment is None:
            return self.pairs[index]
        return Augmented(self.pairs, self.augment, self.seed)[number, index]

    def make(self, number: int) -> Chunk:
        """Make a chunk.

        Raises:
            UserError: A pair's displacement is unknown, or no voxel belongs to any class.
        """
        first = number * self.images
        pairs = [self.source(n) for n in range(first, first + self.images)]
        if lacking := [p["name"] for p in pairs if "displacement" not in p]:
            raise UserError(f"Patches: {lacking[0]} has no known displacement to draw patches by.")
        found = [places(p, self.thresholds, self.rule, self.border) for p in pairs]
        counts = np.array([[len(c) for c in image] for image in found])
        if not counts.any():
            raise UserError(
                f"Patches: no voxel of {pairs[0]['name']} and {self.images - 1} others lies "
                f"border={self.border} voxels inside the image, in its mask and in a class of "
                f"thresholds={self.thresholds}: lower the border or raise the last threshold."
            )
        rng = np.random.default_rng([self.seed, DRAW, number])
        drawn = balanced(rng, counts, self.images * self.samples)
        flat = [(i, int(found[i][c][k])) for i, c, k in drawn.tolist()]
        centre = [np.unravel_index(k, pairs[i]["fixed"].shape[1:]) for i, k in flat]
        return Chunk(pairs, drawn[:, 0], np.array(centre))

    def chunk(self, number: int) -> Chunk:
        """A chunk; the one after it is begun."""
        if self.worker is None or self.process != os.getpid():  # a thread does not survive a fork
            self.worker, self.process, self.made = ThreadPoolExecutor(1), os.getpid(), {}
        self.made = {n: made for n, made in self.made.items() if n in (number, number + 1)}
        for n in (number, number + 1):
            if n not in self.made:
                self.made[n] = self.worker.submit(self.make, n)
        return self.made[number].result()

    def __getitem__(self, number: int) -> Pair:
        which, k = divmod(number, self.images * self.samples)
        chunk = self.chunk(which)
        pair, centre = chunk.pairs[chunk.image[k]], chunk.centre[k].tolist()
        output, margin = (per_axis(n, len(centre)) for n in (self.output, self.margin))
        side = [n + 2 * m for n, m in zip(output, margin, strict=True)]
        start = [c - n // 2 - m for c, n, m in zip(centre, output, margin, strict=True)]
        patch = {key: cut(pair[key], start, side) for key in ("fixed", "moving", "displacement")}
        mask = torch.zeros(1, *side)
        mask[(0, *(slice(m, m + n) for n, m in zip(output, margin, strict=True)))] = 1  # type: ignore[index]
        name = f"{pair['name']}-{'-'.join(map(str, centre))}"
        return Pair(**patch, fixed_mask=mask, spacing=pair["spacing"], name=name)  # type: ignore


class InOrder(EpochSampler):
    """Every draw since training began by its number; an epoch goes on where the last one ended."""

    def __iter__(self) -> Iterator[int]:
        return iter(self.draws())


class PatchModule(PairModule):
    """Train on patches, judge on whole images.

    Args:
        patches: ``patches(pairs=..., seed=..., augment=...)`` makes :class:`Patches` of the pairs
            for training; null: train on whole images, too.
        **more: As :class:`regnet_lab.data.datamodule.PairModule`; ``epoch_size`` counts patches, and
            ``workers: 1`` moves all of the work to another process (each further one would make
            all the chunks again).
    """

    def __init__(self, patches: Callable[..., Patches] | None, **more: Any) -> None:
        super().__init__(**more)
        self.patches = patches

    def train_dataloader(self) -> ResumableLoader:
        if self.patches is None:
            return super().train_dataloader()
        patches = self.patches(pairs=self.pairs("train"), seed=self.seed, augment=self.augment)
        samples = self.epoch_size or len(patches)
        return ResumableLoader(
            patches,
            self.batch_size,
            sampler=InOrder(samples, samples, self.seed),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
