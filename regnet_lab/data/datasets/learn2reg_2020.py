"""The four tasks of Learn2Reg 2020 in their published layouts (learn2reg.grand-challenge.org).

``root`` is the folder of the task, or the one that holds it as ``task_0N``. Its ``pairs_val.csv``
has the numbers of a fixed and a moving case in every row: these pairs are the validation set, and
no case they name is trained on. ``test_root`` is such a folder with the test cases (published as
``Test/task_0N``); without it, the validation pairs are the test pairs too.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from regnet_lab.data.case import Case, CasePairs, Points, ordered_pairs
from regnet_lab.data.io.images import existing_folder
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

Prepare = Callable[[Case, Case], Pair]
Couple = tuple[Case, Case]  # fixed and moving


def task01(split: str, root: str, prepare: Prepare, test_root: str | None = None) -> CasePairs:
    """Brain MR (FLAIR, fixed) and ultrasound (moving) before resection (EASY-RESECT).

    ``NIFTI/CaseN/CaseN-FLAIR-resize.nii`` and ``CaseN-US-before-resize.nii``; landmarks in
    ``landmarks/Coordinates/CaseN-MRI-beforeUS.tag``, in millimetres (RAS) of either image; all
    this in the task's folder or in ``EASY-RESECT`` there.
    """
    folder = task_folder(split, "task_01", root, test_root)
    inner = within(folder, "EASY-RESECT")

    def couple(number: int) -> Couple:
        tag = inner / "landmarks" / "Coordinates" / f"Case{number}-MRI-beforeUS.tag"

        def case(image: str, *columns: int) -> Case:
            path = inner / "NIFTI" / f"Case{number}" / f"Case{number}-{image}-resize.nii"
            points = Points(tag, columns, space="ras") if tag.is_file() else None
            return Case(path.stem, path, points=points)

        return case("FLAIR", 0, 1, 2), case("US-before", 3, 4, 5)

    numbers = numbered(inner / "NIFTI", r"Case(\d+)")
    return CasePairs(own_pairs(folder, split, {n: couple(n) for n in numbers}), prepare)


def task02(
    split: str,
    root: str,
    prepare: Prepare,
    test_root: str | None = None,
    both_directions: bool = False,
) -> CasePairs:
    """Lung CT of one patient, breathed out (fixed) and in (moving), with masks of the lungs.

    ``training/scans/case_NNN_exp|insp.nii.gz``, the same names in ``training/lungMasks``, and
    landmarks in ``training/lms/case_NNN.txt``: voxels, the fixed point and then the moving one.
    ``both_directions``: train the other way round as well (published so).
    """
    folder = task_folder(split, "task_02", root, test_root)
    inner = folder / "training"

    def couple(number: int) -> Couple:
        table = inner / "lms" / f"case_{number:03d}.txt"

        def case(phase: str, *columns: int) -> Case:
            path = inner / "scans" / f"case_{number:03d}_{phase}.nii.gz"
            mask = companion(path, inner / "lungMasks")
            points = Points(table, columns) if table.is_file() else None
            return Case(stem(path), path, mask=mask, points=points)

        return case("exp", 0, 1, 2), case("insp", 3, 4, 5)

    numbers = numbered(inner / "scans", r"case_(\d+)_(?:exp|insp)\.nii\.gz")
    pairs = own_pairs(folder, split, {n: couple(n) for n in numbers})
    if split == "train" and both_directions:
        pairs += [(moving, fixed) for fixed, moving in pairs]
    return CasePairs(pairs, prepare)


def task03(split: str, root: str, prepare: Prepare, test_root: str | None = None) -> CasePairs:
    """Abdomen CT of different patients: ``Training/img/imgNNNN.nii.gz``, label/labelNNNN.nii.gz.

    Training is every ordered pair of the cases that ``pairs_val.csv`` does not name.
    """
    folder = task_folder(split, "task_03", root, test_root)

    def case(path: Path) -> Case:
        name = path.name.replace("img", "label")
        return Case(stem(path), path, companion(path, folder / "Training" / "label", name))

    images = numbered(folder / "Training" / "img", r"img(\d+)\.nii\.gz")
    return CasePairs(mixed_pairs(folder, split, {n: case(p) for n, p in images.items()}), prepare)


def task04(split: str, root: str, prepare: Prepare, test_root: str | None = None) -> CasePairs:
    """Hippocampus MR of different patients: ``Training/img|label/hippocampus_NNN.nii.gz``.

    Training is every ordered pair of the cases that ``pairs_val.csv`` does not name.
    """
    folder = task_folder(split, "task_04", root, test_root)

    def case(path: Path) -> Case:
        return Case(stem(path), path, companion(path, folder / "Training" / "label"))

    images = numbered(folder / "Training" / "img", r"hippocampus_(\d+)\.nii\.gz")
    return CasePairs(mixed_pairs(folder, split, {n: case(p) for n, p in images.items()}), prepare)


def task_folder(split: str, task: str, root: str, test_root: str | None) -> Path:
    """The folder in which the cases of a split lie."""
    return within(existing_folder(test_root if split == "test" and test_root else root, task), task)


def within(folder: Path, inner: str) -> Path:
    """``folder/inner``, or ``folder`` where there is none."""
    return folder / inner if (folder / inner).is_dir() else folder


def numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """What a folder holds under names that match ``pattern``, by the number in its first group.

    Raises:
        UserError: There is no such thing.
    """
    found = {
        int(match[1]): path
        for path in sorted(existing_folder(folder, "Learn2Reg 2020").iterdir())
        if (match := re.fullmatch(pattern, path.name))
    }
    if not found:
        raise UserError(f"{folder}: nothing in this folder is named {pattern}, as published.")
    return found


def companion(image: Path, folder: Path, name: str | None = None) -> Path | None:
    """The image's file in another folder; None where the release has no such folder."""
    return folder / (name or image.name) if folder.is_dir() else None


def stem(path: Path) -> str:
    """The file's name without ``.nii.gz``."""
    return path.name.split(".")[0]


def listed_pairs(path: Path, cases: Mapping[int, object]) -> list[tuple[int, int]]:
    """Fixed and moving numbers of a ``pairs_val.csv``.

    Raises:
        UserError: The file is missing, has no integer columns ``fixed`` and ``moving``, or names a
            case that is not there.
    """
    try:
        table = pd.read_csv(path, dtype={"fixed": int, "moving": int})
        pairs = list(zip(table["fixed"], table["moving"], strict=True))
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: needs columns 'fixed' and 'moving' with whole numbers."
        ) from error
    if missing := sorted({number for pair in pairs for number in pair} - cases.keys()):
        raise UserError(f"{path}: there is no image of case {missing[0]}.")
    return pairs


def left_over(pairs: Sequence[tuple[int, int]], numbers: Sequence[int]) -> list[int]:
    """The numbers that no pair names."""
    return sorted(set(numbers) - {number for pair in pairs for number in pair})


def own_pairs(folder: Path, split: str, couples: Mapping[int, Couple]) -> list[Couple]:
    """The pairs of a split where the two images of a number belong together."""
    pairs = listed_pairs(folder / "pairs_val.csv", couples)
    if split == "train":
        return [couples[number] for number in left_over(pairs, list(couples))]
    return [(couples[fixed][0], couples[moving][1]) for fixed, moving in pairs]


def mixed_pairs(folder: Path, split: str, cases: Mapping[int, Case]) -> list[Couple]:
    """The pairs of a split where any two cases make a pair."""
    pairs = listed_pairs(folder / "pairs_val.csv", cases)
    if split == "train":
        return ordered_pairs([cases[number] for number in left_over(pairs, list(cases))])
    return [(cases[fixed], cases[moving]) for fixed, moving in pairs]
