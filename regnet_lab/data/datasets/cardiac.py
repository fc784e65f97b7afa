"""Cardiac cine MR: end-systole (moving) is registered to end-diastole (fixed).

A layout (:mod:`regnet_lab.data.datasets.cardiac_layouts`) finds the subjects of a folder, and
:func:`list_cardiac_pairs` pairs their phases.  Training uses single slices, shuffled by the
sampler.  Validation and test use volumes of the same slices, each preprocessed on its own as in
training, so that metrics are those of a volume; a 2D model registers them through
:class:`regnet_lab.models.SliceWiseModel`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from regnet_lab.data.case import Case, CasePair
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.datasets.cardiac_layouts import CardiacSubject
from regnet_lab.data.io.images import IMAGE_READ_ERRORS
from regnet_lab.data.splits import DEFAULT_SPLITS, SplitSpec, select_subjects
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates, nifti
from regnet_lab.types import Pair, update_pair

COMMON_KEYS = ("name", "spacing")  # the same in all slices of a volume


def list_cardiac_pairs(
    split: str,
    root: str,
    prepare: Prepare,
    layout: Callable[[str], Mapping[str, CardiacSubject]],
    splits: SplitSpec = DEFAULT_SPLITS,
    train_slices: Sequence[float] | None = None,
    eval_slices: Sequence[float] | None = None,
    any_phases: bool = False,
    require_label_overlap: bool = False,
) -> CasePairs:
    """List the pairs of a split: slices for training, volumes for validation and test.

    ``layout(root)`` returns the subjects by name, of which ``splits`` makes splits
    (:func:`regnet_lab.data.splits.select_subjects`).  ``train_slices`` are relative positions p of
    the slices int(p n) of n, null for every slice; ``eval_slices`` are the same for validation and
    test.  With ``any_phases``, training uses every ordered pair of phases of a slice, without
    labels, instead of the two labelled ones.  With ``require_label_overlap``, labels are evaluated
    only on slices that :func:`keep_overlapping_labels` keeps.
    """
    subjects = layout(root)
    names = select_subjects(split, list(subjects), splits, root)
    selected = [subjects[name] for name in names]
    if split != "train":
        return VolumePairs(selected, prepare, eval_slices, require_label_overlap)
    list_pairs = list_phase_pairs if any_phases else list_labelled_pairs
    pairs = [pair for subject in selected for pair in list_pairs(subject, train_slices)]
    return CasePairs(pairs, prepare)


def list_labelled_pairs(
    subject: CardiacSubject, positions: Sequence[float] | None
) -> list[CasePair]:
    """List end-diastole and end-systole of each slice."""
    slices = select_slices(positions, subject.slices or range(read_header(subject.ed.image)[0][2]))
    return [(make_slice_case(subject.ed, k), make_slice_case(subject.es, k)) for k in slices]


def list_phase_pairs(subject: CardiacSubject, positions: Sequence[float] | None) -> list[CasePair]:
    """List all ordered pairs of different phases of each slice."""
    name = subject.ed.name.removesuffix("-ED")
    if subject.cine is None:
        raise UserError(f"any_phases: subject {name} has no cine; set any_phases=false.")
    shape, _ = read_header(subject.cine)
    if len(shape) != 4:
        raise UserError(f"{subject.cine}: a cine has axes x, y, z and t, not shape {shape}.")
    pairs: list[CasePair] = []
    for k in select_slices(positions, range(shape[2])):
        phases = [Case(f"{name}-t{t:02d}", subject.cine, phase=t) for t in range(shape[3])]
        pairs += permutations([make_slice_case(phase, k) for phase in phases], 2)
    return pairs


def select_slices(positions: Sequence[float] | None, slices: Sequence[int]) -> list[int]:
    """Select the slice at each relative position, or all slices.

    >>> select_slices([0.25, 0.5], range(10))
    [2, 5]
    """
    if positions is None:
        return list(slices)
    return [slices[min(int(p * len(slices)), len(slices) - 1)] for p in positions]


def make_slice_case(case: Case, k: int) -> Case:
    """Return the case of slice k, with its own name."""
    return replace(case, name=f"{case.name}-z{k:02d}", slice=k)


def read_header(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Read the shape of a NIfTI image and its voxel size in mm along the first three axes."""
    try:
        image = cast(SpatialImage, nibabel.load(path))
        header = nifti.read_header(path)
    except IMAGE_READ_ERRORS as error:
        raise UserError(f"{path}: is missing or cannot be read as an image; replace it.") from error
    if len(image.shape) < 3:
        raise UserError(f"{path}: needs slices along a third axis, its shape is {image.shape}.")
    affine = image.affine if header is None else nifti.choose_geometry(header)[1]
    return image.shape, coordinates.affine_to_spacing(np.asarray(affine))


class VolumePairs(CasePairs):
    """End-diastole and end-systole as volumes (1, x, y, slices); a single slice stays (1, x, y).

    Arguments are those of :func:`list_cardiac_pairs`, ``positions`` its ``eval_slices``.
    """

    def __init__(
        self,
        subjects: Sequence[CardiacSubject],
        prepare: Prepare,
        positions: Sequence[float] | None = None,
        require_label_overlap: bool = False,
    ) -> None:
        super().__init__([(subject.ed, subject.es) for subject in subjects], prepare)
        self.subjects, self.positions = subjects, positions
        self.require_label_overlap = require_label_overlap

    def __getitem__(self, index: int) -> Pair:
        subject = self.subjects[index]
        shape, spacing = read_header(subject.ed.image)
        slices = select_slices(self.positions, subject.slices or range(shape[2]))
        ed, es = subject.ed, subject.es
        pairs = [self.prepare(replace(ed, slice=k), replace(es, slice=k)) for k in slices]
        if len(pairs) == 1:
            return pairs[0]
        gap = float(spacing[2]) * (slices[-1] - slices[0]) / (len(slices) - 1)
        volume = stack_slices(pairs, gap)
        return keep_overlapping_labels(volume) if self.require_label_overlap else volume


def stack_slices(pairs: Sequence[Pair], gap: float) -> Pair:
    """Stack slices (1, x, y) to a volume (1, x, y, slices) with ``gap`` mm between slices."""
    slices: list[dict[str, Any]] = [dict(pair) for pair in pairs]
    spacing, keys = pairs[0]["spacing"], [key for key in slices[0] if key not in COMMON_KEYS]
    tensors = {key: torch.stack([one[key] for one in slices], -1) for key in keys}
    spacing = torch.cat([spacing, spacing.new_tensor([gap])])
    return cast(Pair, {"name": pairs[0]["name"], "spacing": spacing, **tensors})


def keep_overlapping_labels(pair: Pair) -> Pair:
    """Remove the labels of slices in which some structure does not overlap itself in the other
    image before registration.

    GraDIRN evaluates M&Ms-2 in this way: contraction moves the base through the plane, and
    structures that enter or leave a slice have no counterpart there.
    """
    fixed, moving = pair["fixed_labels"], pair["moving_labels"]
    structures = torch.cat([fixed, moving]).unique()
    overlaps = [((fixed == s) & (moving == s)).flatten(0, -2).any(0) for s in structures if s != 0]
    keep = torch.stack(overlaps).all(0) if overlaps else fixed.new_ones(fixed.shape[-1])
    return update_pair(pair, fixed_labels=fixed * keep, moving_labels=moving * keep)
