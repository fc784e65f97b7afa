"""A share of the training subjects: which pairs remain and how often they are shown."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from regnet_lab.data.case import Case
from regnet_lab.data.datamodule import PairDataModule, select_training_fraction
from regnet_lab.data.datasets.base import CasePairs, PairDataset
from regnet_lab.errors import UserError


def prepare(fixed, moving):
    return {"name": f"{fixed.name} <- {moving.name}"}


def case(name, image=None, **part):
    return Case(name, Path(image or f"{name}.nii"), **part)


def between_subjects(n):
    return [*permutations([case(f"s{k}") for k in range(n)], 2)]


def to_atlas(n):
    return [(case("atlas"), case(f"s{k}")) for k in range(n)]


def beats(n, slices=3):
    """Slices of two phases of n subjects, a file for each phase."""

    def make_slice_case(k, phase, z):
        return case(f"s{k}-{phase}-z{z}", f"s{k}-{phase}.nii", slice=z)

    return [
        (make_slice_case(k, "ED", z), make_slice_case(k, "ES", z))
        for k in range(n)
        for z in range(slices)
    ]


def phases(n, frames=4):
    """All ordered pairs of phases of one slice, a file for each subject."""
    cases = [[case(f"s{k}-t{t}", f"s{k}.nii", phase=t) for t in range(frames)] for k in range(n)]
    return [pair for own in cases for pair in permutations(own, 2)]


@pytest.mark.parametrize(
    ("pairs", "left"),
    [
        (between_subjects, lambda k: k * (k - 1)),
        (to_atlas, lambda k: k),
        (beats, lambda k: 3 * k),
        (phases, lambda k: 12 * k),
    ],
)
@pytest.mark.parametrize(("fraction", "subjects"), [(0.2, 2), (0.35, 3), (0.7, 7), (1.0, 10)])
def test_the_first_subjects_are_selected_with_all_pairs_among_them(pairs, left, fraction, subjects):
    listed = pairs(10)
    chosen = select_training_fraction(CasePairs(listed, prepare), fraction)
    assert len(chosen) == left(subjects)
    names = {c.name.split("-")[0] for k in chosen for c in listed[k]} - {"atlas"}
    assert names == {f"s{k}" for k in range(subjects)}


def test_a_smaller_fraction_is_part_of_a_larger_one():
    data = CasePairs(between_subjects(9), prepare)
    shares = [set(select_training_fraction(data, fraction)) for fraction in (0.3, 0.5, 0.9)]
    assert shares[0] < shares[1] < shares[2]


class GeneratedPairs(PairDataset):
    """Pairs without files."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"name": f"pair{index}"}


def test_without_files_the_first_pairs_are_selected():
    assert select_training_fraction(GeneratedPairs(), 0.25) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UserError, match=f"data.fraction={fraction}"):
        select_training_fraction(GeneratedPairs(), fraction)


def test_too_few_subjects_for_a_pair_are_refused():
    with pytest.raises(UserError, match="1 of 10 subjects"):
        select_training_fraction(CasePairs(between_subjects(10), prepare), 0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_keeps_its_length_and_shows_every_selected_pair(workers):
    def dataset(split):
        return CasePairs(to_atlas(8), prepare)

    shown = {}
    for fraction in (1.0, 0.5):
        module = PairDataModule(dataset, batch_size=2, num_workers=workers, fraction=fraction)
        shown[fraction] = [name for batch in module.train_dataloader() for name in batch["name"]]
        assert len(list(module.val_dataloader())) == 8
    assert len(shown[0.5]) == len(shown[1.0]) == 8
    counts = torch.tensor([shown[0.5].count(f"atlas <- s{k}") for k in range(8)])
    assert counts.tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
