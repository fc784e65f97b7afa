"""Brain MR of different subjects, registered to each other or to an atlas.

A layout lists the subjects of a folder, and :func:`inter_subject` makes pairs of them. Published
layouts are told apart by the names of their files alone: GraDIRN's CamCAN, neurite-OASIS,
Mindboggle-101, LPBA40 and the volumes of FAIM are :func:`subject_files` with other patterns, given
in ``conf/data/brain*.yaml``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

from regnet_lab.data.case import Case, CasePairs
from regnet_lab.data.io.images import read_table
from regnet_lab.data.splits import SHARES, Splits, file_of, find_subjects, of_split
from regnet_lab.errors import UserError
from regnet_lab.types import Pair


@dataclass(frozen=True)
class Subject:
    """The images of a subject, which lie on one grid: one to be fixed and one to move.

    They are the same unless the modalities of the pairs differ.
    """

    fixed: Case
    moving: Case


def inter_subject(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    layout: Callable[[str], Mapping[str, Subject]],
    splits: Splits = SHARES,
    atlas: str | None = None,
    atlas_labels: str | None = None,
    slice: int | float | None = None,
) -> CasePairs:
    """The pairs of a split.

    Training takes every subject with every other one, both ways round; validation and test move
    the next subject i + 1 (the first one after the last) to subject i, as GraDIRN does. With an
    atlas, every subject but the atlas itself is moved to it.

    Args:
        split: ``train``, ``val`` or ``test``; no subject is trained on and judged, see
            :func:`regnet_lab.data.splits.of_split`.
        root: Folder of the data set.
        prepare: Makes a pair of two cases.
        layout: Gives the subjects of ``root`` by name.
        splits: Which subjects are for which split.
        atlas: A subject, or an image file.
        atlas_labels: The label file of an atlas given as a file.
        slice: Take this slice along the last axis, a fraction being a relative position.

    Raises:
        UserError: The splits do not fit the subjects, or there is no such atlas.
    """
    subjects = layout(root)
    names = of_split(split, list(subjects), splits, root)
    if atlas is not None:
        fixed = subjects[atlas].fixed if atlas in subjects else atlas_case(atlas, atlas_labels)
        pairs = [(fixed, subjects[name].moving) for name in names if name != atlas]
    elif split == "train":
        pairs = [(subjects[a].fixed, subjects[b].moving) for a, b in permutations(names, 2)]
    else:
        following = names[1:] + names[:1] if len(names) > 1 else []
        pairs = [
            (subjects[a].fixed, subjects[b].moving) for a, b in zip(names, following, strict=False)
        ]
    return CasePairs(
        [(replace(f, slice=slice), replace(m, slice=slice)) for f, m in pairs], prepare
    )


def atlas_case(image: str, labels: str | None) -> Case:
    """An atlas that is none of the subjects.

    Raises:
        UserError: One of its files does not exist.
    """
    for path in (image, labels):
        if path is not None and not Path(path).exists():
            raise UserError(f"atlas: {path} is neither a subject nor a file; give one of the two.")
    return Case("atlas", Path(image), Path(labels) if labels else None)


def subject(name: str, image: Path, labels: Path | None, moving: Path | None) -> Subject:
    """A subject whose ``moving`` image, if it has its own, shares the labels of the fixed one."""
    fixed = Case(name.replace("/", "-"), image, labels)
    if moving is None:
        return Subject(fixed, fixed)
    return Subject(fixed, replace(fixed, name=f"{fixed.name}-moving", image=moving))


def subject_files(
    root: str, image: str, labels: str | None = None, moving: str | None = None
) -> dict[str, Subject]:
    """Subjects found by file names, in sorted order.

    Args:
        root: Folder of the data set.
        image: Path below it with ``{}`` for the subject
            (:func:`regnet_lab.data.splits.find_subjects`).
        labels: The same for the label maps.
        moving: The same for the images to move, such as ``{}/T2_brain.nii.gz``; null: ``image``.

    Raises:
        UserError: There is no such image, or a subject lacks one of the others.
    """

    def other(pattern: str | None, name: str) -> Path | None:
        return file_of(root, pattern, name) if pattern else None

    return {
        name: subject(name, path, other(labels, name), other(moving, name))
        for name, path in find_subjects(root, image).items()
    }


def subject_table(root: str, table: str = "subjects.csv") -> dict[str, Subject]:
    """Subjects listed in a CSV, in its order.

    Columns ``subject`` and ``image``, optionally ``labels`` and ``moving``; files are given
    relative to the folder of the CSV, or from ``/``.

    Args:
        root: Folder of the data set.
        table: The CSV, below it.

    Raises:
        UserError: The CSV or a file in it is missing, a column is, or a subject is named twice.
    """
    path = Path(root) / table
    rows = read_table(path, ("subject", "image"))
    names = [row["subject"] for row in rows]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: subject {repeated[0]} is listed twice; name every one once.")

    def file(row: Mapping[str, str], column: str) -> Path | None:
        return file_of(path.parent, row[column], row["subject"]) if row.get(column) else None

    return {
        row["subject"]: subject(
            row["subject"],
            file_of(path.parent, row["image"], row["subject"]),
            file(row, "labels"),
            file(row, "moving"),
        )
        for row in rows
    }
