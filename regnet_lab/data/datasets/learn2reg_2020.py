"""The four tasks of Learn2Reg 2020 in their published layouts (learn2reg.grand-challenge.org).

``root`` is the folder of the task, or the one that contains it as ``task_0N``.  Each row of its
``pairs_val.csv`` has the numbers of a fixed and a moving case: these pairs are the validation set,
and their cases are not used in training.  ``test_root`` is such a folder with the test cases
(published as ``Test/task_0N``); without it, the validation pairs are also the test pairs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from regnet_lab.data.case import Case, CasePair, LandmarkFile, make_ordered_pairs
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.io.images import require_folder
from regnet_lab.data.io.tables import read_table
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

    def make_pair(number: int) -> CasePair:
        tag = data / "landmarks" / "Coordinates" / f"Case{number}-MRI-beforeUS.tag"

        def make_case(image: str, *columns: int) -> Case:
            path = data / "NIFTI" / f"Case{number}" / f"Case{number}-{image}-resize.nii"
            points = LandmarkFile(tag, columns, space="ras") if tag.is_file() else None
            return Case(path.stem, path, points=points)

        return make_case("FLAIR", 0, 1, 2), make_case("US-before", 3, 4, 5)

    numbers = _find_numbered_files(data / "NIFTI", r"Case(\d+)")
    pairs = {number: make_pair(number) for number in numbers}
    return CasePairs(_select_intra_subject_pairs(folder, split, pairs), prepare)


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

    def make_pair(number: int) -> CasePair:
        table = data / "lms" / f"case_{number:03d}.txt"

        def make_case(phase: str, *columns: int) -> Case:
            path = data / "scans" / f"case_{number:03d}_{phase}.nii.gz"
            mask = _find_companion(path, data / "lungMasks")
            points = LandmarkFile(table, columns) if table.is_file() else None
            return Case(_get_stem(path), path, mask=mask, points=points)

        return make_case("exp", 0, 1, 2), make_case("insp", 3, 4, 5)

    numbers = _find_numbered_files(data / "scans", r"case_(\d+)_(?:exp|insp)\.nii\.gz")
    pairs = _select_intra_subject_pairs(folder, split, {n: make_pair(n) for n in numbers})
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

    def make_case(path: Path) -> Case:
        name = path.name.replace("img", "label")
        return Case(
            _get_stem(path), path, _find_companion(path, folder / "Training" / "label", name)
        )

    images = _find_numbered_files(folder / "Training" / "img", r"img(\d+)\.nii\.gz")
    cases = {number: make_case(path) for number, path in images.items()}
    return CasePairs(_select_inter_subject_pairs(folder, split, cases), prepare)


def list_task04_pairs(
    split: str, root: str, prepare: Prepare, test_root: str | None = None
) -> CasePairs:
    """List pairs of hippocampus MR of different patients:
    ``Training/img|label/hippocampus_NNN.nii.gz``.

    Training uses all ordered pairs of the cases that ``pairs_val.csv`` does not name.
    """
    folder = _find_task_folder(split, "task_04", root, test_root)

    def make_case(path: Path) -> Case:
        return Case(_get_stem(path), path, _find_companion(path, folder / "Training" / "label"))

    images = _find_numbered_files(folder / "Training" / "img", r"hippocampus_(\d+)\.nii\.gz")
    cases = {number: make_case(path) for number, path in images.items()}
    return CasePairs(_select_inter_subject_pairs(folder, split, cases), prepare)


def _find_task_folder(split: str, task: str, root: str, test_root: str | None) -> Path:
    """Return the folder with the cases of a split."""
    folder = test_root if split == "test" and test_root else root
    return _enter_subfolder(require_folder(folder, task), task)


def _enter_subfolder(folder: Path, name: str) -> Path:
    """Return ``folder/name``, or ``folder`` where there is none."""
    return folder / name if (folder / name).is_dir() else folder


def _find_numbered_files(folder: Path, pattern: str) -> dict[int, Path]:
    """Find the entries of a folder that match ``pattern``, by the number in its first group.

    Raises:
        UserError: There is none.
    """
    paths = {
        int(match[1]): path
        for path in sorted(require_folder(folder, "Learn2Reg 2020").iterdir())
        if (match := re.fullmatch(pattern, path.name))
    }
    if not paths:
        raise UserError(f"{folder}: nothing in this folder is named {pattern}, as published.")
    return paths


def _find_companion(image: Path, folder: Path, name: str | None = None) -> Path | None:
    """Return the image's file in another folder; None where the release has no such folder."""
    return folder / (name or image.name) if folder.is_dir() else None


def _get_stem(path: Path) -> str:
    """Return the file's name without ``.nii.gz``."""
    return path.name.split(".")[0]


def _read_listed_pairs(path: Path, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Read the fixed and moving numbers of a ``pairs_val.csv``.

    Raises:
        UserError: The file is missing, has no columns ``fixed`` and ``moving`` with whole numbers,
            or names a case that does not exist.
    """
    rows = read_table(path, ("fixed", "moving"))
    try:
        pairs = [(int(row["fixed"]), int(row["moving"])) for row in rows]
    except ValueError as error:
        raise UserError(
            f"{path}: needs columns 'fixed' and 'moving' with whole numbers."
        ) from error
    if missing := sorted({number for pair in pairs for number in pair} - set(numbers)):
        raise UserError(f"{path}: there is no image of case {missing[0]}.")
    return pairs


def _exclude_listed(pairs: Sequence[tuple[int, int]], numbers: Iterable[int]) -> list[int]:
    """Return the numbers that no pair names, sorted."""
    return sorted(set(numbers) - {number for pair in pairs for number in pair})


def _select_intra_subject_pairs(
    folder: Path, split: str, case_pairs: Mapping[int, CasePair]
) -> list[CasePair]:
    """Select the pairs of a split where the two images of one number belong together."""
    listed = _read_listed_pairs(folder / "pairs_val.csv", case_pairs)
    if split == "train":
        return [case_pairs[number] for number in _exclude_listed(listed, case_pairs)]
    return [(case_pairs[fixed][0], case_pairs[moving][1]) for fixed, moving in listed]


def _select_inter_subject_pairs(
    folder: Path, split: str, cases: Mapping[int, Case]
) -> list[CasePair]:
    """Select the pairs of a split where any two cases make a pair."""
    listed = _read_listed_pairs(folder / "pairs_val.csv", cases)
    if split == "train":
        return make_ordered_pairs([cases[number] for number in _exclude_listed(listed, cases)])
    return [(cases[fixed], cases[moving]) for fixed, moving in listed]
