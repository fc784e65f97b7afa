"""The four tasks of Learn2Reg 2020 in their published layouts (learn2reg.grand-challenge.org).

``root`` is the folder of the task, or the one that contains it as ``task_0N``.  Each row of its
``pairs_val.csv`` has the numbers of a fixed and a moving case: these pairs are the validation set,
and their cases are not used in training.  ``test_root`` is such a folder with the test cases
(published as ``Test/task_0N``); without it, the validation pairs are also the test pairs.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

from regnet_lab.data.case import Case, CasePair, LandmarkFile
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.datasets.learn2reg_json import get_stem
from regnet_lab.data.io.images import require_folder
from regnet_lab.data.io.tables import parse_whole_number, read_table
from regnet_lab.errors import UserError


def list_task01_pairs(
    split: str, root: str, prepare: Prepare, test_root: str | None = None
) -> CasePairs:
    """List pairs of brain MR (FLAIR, fixed) and ultrasound (moving) before resection
    (EASY-RESECT).

    ``NIFTI/CaseN/CaseN-FLAIR-resize.nii`` and ``CaseN-US-before-resize.nii``; landmarks in
    ``landmarks/Coordinates/CaseN-MRI-beforeUS.tag``, in millimetres (RAS) of either image; all
    this in the task's folder or in ``EASY-RESECT`` there.
    """
    folder = _find_task_folder(split, "task_01", root, test_root)
    data = _enter_subfolder(folder, "EASY-RESECT")

    def make_case(number: int, image: str, *columns: int) -> Case:
        tag = data / "landmarks" / "Coordinates" / f"Case{number}-MRI-beforeUS.tag"
        path = data / "NIFTI" / f"Case{number}" / f"Case{number}-{image}-resize.nii"
        points = LandmarkFile(tag, columns, space="ras") if tag.is_file() else None
        return Case(path.stem, path, points=points)

    numbers = _find_numbered_files(data / "NIFTI", r"Case(\d+)")
    fixed = {number: make_case(number, "FLAIR", 0, 1, 2) for number in numbers}
    moving = {number: make_case(number, "US-before", 3, 4, 5) for number in numbers}
    return CasePairs(_select_pairs(folder, split, fixed, moving), prepare)


def list_task02_pairs(
    split: str,
    root: str,
    prepare: Prepare,
    test_root: str | None = None,
    both_directions: bool = False,
) -> CasePairs:
    """List pairs of lung CT of one patient at expiration (fixed) and inspiration (moving), with
    lung masks.

    ``training/scans/case_NNN_exp|insp.nii.gz``, the same names in ``training/lungMasks``, and
    landmarks in ``training/lms/case_NNN.txt``: voxels, the fixed point and then the moving one.
    ``both_directions``: also train with the two images exchanged (published so).
    """
    folder = _find_task_folder(split, "task_02", root, test_root)
    data = folder / "training"

    def make_case(number: int, phase: str, *columns: int) -> Case:
        path = data / "scans" / f"case_{number:03d}_{phase}.nii.gz"
        mask = _find_companion(data / "lungMasks", path.name)
        table = data / "lms" / f"case_{number:03d}.txt"
        points = LandmarkFile(table, columns) if table.is_file() else None
        return Case(get_stem(path.name), path, mask=mask, points=points)

    numbers = _find_numbered_files(data / "scans", r"case_(\d+)_(?:exp|insp)\.nii\.gz")
    fixed = {number: make_case(number, "exp", 0, 1, 2) for number in numbers}
    moving = {number: make_case(number, "insp", 3, 4, 5) for number in numbers}
    pairs = _select_pairs(folder, split, fixed, moving)
    if split == "train" and both_directions:
        pairs += [(moving, fixed) for fixed, moving in pairs]
    return CasePairs(pairs, prepare)


def list_task03_pairs(
    split: str, root: str, prepare: Prepare, test_root: str | None = None
) -> CasePairs:
    """List pairs of abdomen CT of different patients: ``Training/img/imgNNNN.nii.gz`` and
    ``Training/label/labelNNNN.nii.gz``.

    Training uses all ordered pairs of the cases that ``pairs_val.csv`` does not name.
    """
    folder = _find_task_folder(split, "task_03", root, test_root)
    return _list_inter_subject_pairs(split, folder, prepare, r"img(\d+)\.nii\.gz")


def list_task04_pairs(
    split: str, root: str, prepare: Prepare, test_root: str | None = None
) -> CasePairs:
    """List pairs of hippocampus MR of different patients:
    ``Training/img|label/hippocampus_NNN.nii.gz``.

    Training uses all ordered pairs of the cases that ``pairs_val.csv`` does not name.
    """
    folder = _find_task_folder(split, "task_04", root, test_root)
    return _list_inter_subject_pairs(split, folder, prepare, r"hippocampus_(\d+)\.nii\.gz")


def _list_inter_subject_pairs(
    split: str, folder: Path, prepare: Prepare, pattern: str
) -> CasePairs:
    """List pairs of ``Training/img``; ``imgN`` has its labels in ``Training/label/labelN``, and an
    image of another name has them in the file of the same name.
    """

    def make_case(path: Path) -> Case:
        labels = _find_companion(folder / "Training" / "label", path.name.replace("img", "label"))
        return Case(get_stem(path.name), path, labels)

    images = _find_numbered_files(folder / "Training" / "img", pattern)
    cases = {number: make_case(path) for number, path in images.items()}
    return CasePairs(_select_pairs(folder, split, cases), prepare)


def _find_task_folder(split: str, task: str, root: str, test_root: str | None) -> Path:
    """Return the folder with the cases of a split."""
    folder = test_root if split == "test" and test_root else root
    return _enter_subfolder(require_folder(folder, task), task)


def _enter_subfolder(folder: Path, name: str) -> Path:
    """Return ``folder/name``, or ``folder`` where there is none."""
    return folder / name if (folder / name).is_dir() else folder


def _find_numbered_files(folder: Path, pattern: str) -> dict[int, Path]:
    """Find the entries of a folder that match ``pattern``, by the number in its first group."""
    paths = {
        int(match[1]): path
        for path in sorted(require_folder(folder, "Learn2Reg 2020").iterdir())
        if (match := re.fullmatch(pattern, path.name))
    }
    if not paths:
        raise UserError(f"{folder}: nothing in this folder is named {pattern}, as published.")
    return paths


def _find_companion(folder: Path, name: str) -> Path | None:
    """Return a file that belongs to an image; None where the release has no such folder."""
    return folder / name if folder.is_dir() else None


def _read_listed_pairs(path: Path, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Read the fixed and moving numbers of a ``pairs_val.csv``."""
    rows = read_table(path, ("fixed", "moving"))
    pairs = [
        (
            parse_whole_number(row["fixed"], f"{path}, column fixed"),
            parse_whole_number(row["moving"], f"{path}, column moving"),
        )
        for row in rows
    ]
    if missing := sorted({number for pair in pairs for number in pair} - set(numbers)):
        raise UserError(f"{path}: there is no image of case {missing[0]}.")
    return pairs


def _select_pairs(
    folder: Path, split: str, fixed: Mapping[int, Case], moving: Mapping[int, Case] | None = None
) -> list[CasePair]:
    """Select the pairs of a split: in training, the fixed and the moving case of each number that
    ``pairs_val.csv`` does not name, or, without ``moving``, any two such cases.
    """
    pairs = _read_listed_pairs(folder / "pairs_val.csv", fixed)
    if split == "train":
        rest = sorted(set(fixed) - {number for pair in pairs for number in pair})
        pairs = [(n, n) for n in rest] if moving else list(permutations(rest, 2))
    return [(fixed[a], (moving or fixed)[b]) for a, b in pairs]
