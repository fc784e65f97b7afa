"""Cine MR of the beating heart: end-systole (moving) is registered to end-diastole (fixed).

A layout (:mod:`regnet_lab.data.datasets.cardiac_layouts`) lists the hearts of a folder, and :func:`beats` makes pairs
of them. Training takes single
slices, the sampler shuffling them; validation and test take volumes made of the same slices, each
prepared on its own as in training, so that scores are those of a volume. A model for slices
registers them through :class:`regnet_lab.models.SliceWise`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import nibabel
import torch

from regnet_lab.data.case import Case, CasePairs
from regnet_lab.data.datasets.cardiac_layouts import Heart
from regnet_lab.data.io.images import UNREADABLE
from regnet_lab.data.splits import SHARES, Splits, of_split
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

SHARED = ("name", "spacing")  # what slices of one volume have in common


def beats(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    layout: Callable[[str], Mapping[str, Heart]],
    splits: Splits = SHARES,
    train_slices: Sequence[float] | None = None,
    slices: Sequence[float] | None = None,
    any_phases: bool = False,
    overlapping: bool = False,
) -> CasePairs:
    """The pairs of a split: slices to train on, volumes to judge.

    Args:
        split: ``train``, ``val`` or ``test``; no subject is trained on and judged, see
            :func:`regnet_lab.data.splits.of_split`.
        root: Folder of the data set.
        prepare: Makes a pair of two slices.
        layout: Gives the hearts of ``root`` by the subject's name.
        splits: Which subjects are for which split.
        train_slices: Relative positions p of the slices int(p n) of n; null: every slice.
        slices: The same for validation and test.
        any_phases: Train on every ordered pair of phases of a slice, without labels, instead of
            the two labelled ones.
        overlapping: Judge labels only on slices that :func:`overlapping_labels` keeps.

    Raises:
        UserError: The splits do not fit the subjects, or a heart has no cine to take phases of.
    """
    hearts = layout(root)
    chosen = [hearts[name] for name in of_split(split, list(hearts), splits, root)]
    if split != "train":
        return Volumes(chosen, prepare, slices, overlapping)
    listed = phase_pairs if any_phases else labelled_pairs
    return CasePairs([pair for heart in chosen for pair in listed(heart, train_slices)], prepare)


def labelled_pairs(heart: Heart, positions: Sequence[float] | None) -> list[tuple[Case, Case]]:
    """End-diastole and end-systole of each slice."""
    slices = at(positions, heart.slices or range(header(heart.ed.image)[0][2]))
    return [(one_slice(heart.ed, k), one_slice(heart.es, k)) for k in slices]


def phase_pairs(heart: Heart, positions: Sequence[float] | None) -> list[tuple[Case, Case]]:
    """Every phase of a slice with every other one, both ways round.

    Raises:
        UserError: There is no cine, or it has no fourth axis.
    """
    subject = heart.ed.name.removesuffix("-ED")
    if heart.cine is None:
        raise UserError(f"any_phases: subject {subject} has no cine; set any_phases=false.")
    shape, _ = header(heart.cine)
    if len(shape) != 4:
        raise UserError(f"{heart.cine}: a cine has axes x, y, z and t, not shape {shape}.")
    pairs: list[tuple[Case, Case]] = []
    for k in at(positions, range(shape[2])):
        phases = [Case(f"{subject}-t{t:02d}", heart.cine, phase=t) for t in range(shape[3])]
        pairs += permutations([one_slice(phase, k) for phase in phases], 2)
    return pairs


def at(positions: Sequence[float] | None, slices: Sequence[int]) -> list[int]:
    """The slice at each relative position, or all."""
    if positions is None:
        return list(slices)
    return [slices[min(int(p * len(slices)), len(slices) - 1)] for p in positions]


def one_slice(case: Case, k: int) -> Case:
    """A case's slice, under a name of its own."""
    return replace(case, name=f"{case.name}-z{k:02d}", slice=k)


def header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape of a NIfTI image and its millimetres along each axis.

    Raises:
        UserError: It is missing or damaged, or has fewer than three axes.
    """
    try:
        image = nibabel.load(path)
    except UNREADABLE as error:
        raise UserError(f"{path}: is missing or cannot be read as an image; replace it.") from error
    shape = image.shape  # type: ignore[attr-defined]
    if len(shape) < 3:
        raise UserError(f"{path}: needs slices along a third axis, its shape is {shape}.")
    return shape, image.header.get_zooms()  # type: ignore[attr-defined]


class Volumes(CasePairs):
    """End-diastole and end-systole as volumes (1, x, y, slices); a single slice stays (1, x, y).

    Args:
        hearts: Those to show.
        prepare: Makes a pair of two slices.
        positions: Relative positions of the slices; null: all.
        overlapping: Keep labels only where :func:`overlapping_labels` does.
    """

    def __init__(
        self,
        hearts: Sequence[Heart],
        prepare: Callable[[Case, Case], Pair],
        positions: Sequence[float] | None = None,
        overlapping: bool = False,
    ) -> None:
        super().__init__([(heart.ed, heart.es) for heart in hearts], prepare)
        self.hearts, self.positions, self.overlapping = hearts, positions, overlapping

    def __getitem__(self, index: int) -> Pair:
        heart = self.hearts[index]
        shape, zooms = header(heart.ed.image)
        slices = at(self.positions, heart.slices or range(shape[2]))
        sides = [(replace(heart.ed, slice=k), replace(heart.es, slice=k)) for k in slices]
        pairs = [self.prepare(*side) for side in sides]
        if len(pairs) == 1:
            return pairs[0]
        gap = float(zooms[2]) * (slices[-1] - slices[0]) / (len(slices) - 1)
        volume = stacked(pairs, gap)
        return overlapping_labels(volume) if self.overlapping else volume


def stacked(slices: Sequence[Pair], gap: float) -> Pair:
    """Slices (1, x, y) as a volume (1, x, y, slices), ``gap`` millimetres from one to the next."""
    first = slices[0]
    tensors = {
        key: torch.stack([pair[key] for pair in slices], -1)  # type: ignore[literal-required]
        for key in first
        if key not in SHARED
    }
    spacing = torch.cat([first["spacing"], first["spacing"].new_tensor([gap])])
    return Pair(name=first["name"], spacing=spacing, **tensors)  # type: ignore[typeddict-item]


def overlapping_labels(pair: Pair) -> Pair:
    """The pair with labels only on slices in which every structure overlaps itself in the other
    image before registration, as GraDIRN judges M&Ms-2: contraction moves the base through the
    plane, and what it carries into a slice or out of it has no counterpart there.
    """
    fixed, moving = pair["fixed_labels"], pair["moving_labels"]
    structures = torch.cat([fixed, moving]).unique()
    overlaps = [((fixed == s) & (moving == s)).flatten(0, -2).any(0) for s in structures if s != 0]
    both = torch.stack(overlaps).all(0) if overlaps else fixed.new_ones(fixed.shape[-1])
    return Pair(**{**pair, "fixed_labels": fixed * both, "moving_labels": moving * both})
