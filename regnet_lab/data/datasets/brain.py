"""Brain MR of different subjects, registered to each other or to an atlas.

A layout finds the subjects of a folder, and :func:`list_inter_subject_pairs` pairs them.  The
published layouts differ in file names only: GraDIRN's CamCAN, neurite-OASIS, Mindboggle-101,
LPBA40 and the volumes of FAIM are :func:`find_subject_images` with the patterns of
``conf/data/brain*.yaml``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.io.tables import read_table
from regnet_lab.data.splits import (
    DEFAULT_SPLITS,
    SplitSpec,
    find_subject_file,
    find_subjects,
    select_subjects,
)
from regnet_lab.errors import UserError


@dataclass(frozen=True)
class SubjectCases:
    """The fixed and the moving case of a subject, on one grid.

    They are the same unless the two images of a pair have different modalities.
    """

    fixed: Case
    moving: Case


def list_inter_subject_pairs(
    split: str,
    root: str,
    prepare: Prepare,
    layout: Callable[[str], Mapping[str, SubjectCases]],
    splits: SplitSpec = DEFAULT_SPLITS,
    atlas: str | None = None,
    atlas_labels: str | None = None,
    slice: int | float | None = None,
) -> CasePairs:
    """List the pairs of a split.

    Training uses all ordered pairs of different subjects.  Validation and test register subject
    i + 1 to subject i, and the first to the last, as GraDIRN does.  With an atlas, every other
    subject is registered to it.

    Args:
        split: ``train``, ``val`` or ``test``.
        root: Folder of the data set.
        prepare: Function that reads two cases and returns a pair.
        layout: ``layout(root)`` returns the subjects by name.
        splits: Subjects of each split, see :func:`regnet_lab.data.splits.select_subjects`.
        atlas: A subject, or an image file.
        atlas_labels: Label file of an atlas given as a file.
        slice: Slice along the last axis to use; a float is a relative position.

    Raises:
        UserError: The splits do not fit the subjects, or there is no such atlas.
    """
    subjects = layout(root)
    names = select_subjects(split, list(subjects), splits, root)
    if atlas is not None:
        fixed = subjects[atlas].fixed if atlas in subjects else make_atlas_case(atlas, atlas_labels)
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


def make_atlas_case(image: str, labels: str | None) -> Case:
    """Return the case of an atlas given as files.

    Raises:
        UserError: One of its files does not exist.
    """
    for path in (image, labels):
        if path is not None and not Path(path).exists():
            raise UserError(f"atlas: {path} is neither a subject nor a file; give one of the two.")
    return Case("atlas", Path(image), Path(labels) if labels else None)


def make_subject(name: str, image: Path, labels: Path | None, moving: Path | None) -> SubjectCases:
    """Return the cases of a subject; a ``moving`` image shares the labels of the fixed one."""
    fixed = Case(name.replace("/", "-"), image, labels)
    if moving is None:
        return SubjectCases(fixed, fixed)
    return SubjectCases(fixed, replace(fixed, name=f"{fixed.name}-moving", image=moving))


def find_subject_images(
    root: str, image: str, labels: str | None = None, moving: str | None = None
) -> dict[str, SubjectCases]:
    """Find subjects by file names, sorted.

    Args:
        root: Folder of the data set.
        image: Path below it with ``{}`` for the subject
            (:func:`regnet_lab.data.splits.find_subjects`).
        labels: The same for the label maps.
        moving: The same for separate moving images, such as ``{}/T2_brain.nii.gz``; null: as
            ``image``.

    Raises:
        UserError: There is no such image, or a subject lacks one of the other files.
    """

    def find_file(pattern: str | None, name: str) -> Path | None:
        return find_subject_file(root, pattern, name) if pattern else None

    return {
        name: make_subject(name, path, find_file(labels, name), find_file(moving, name))
        for name, path in find_subjects(root, image).items()
    }


def read_subject_table(root: str, table: str = "subjects.csv") -> dict[str, SubjectCases]:
    """Read the subjects of a CSV, in its order.

    Its columns are ``subject`` and ``image``, optionally ``labels`` and ``moving``.  Files are
    absolute or relative to the folder of the CSV.

    Args:
        root: Folder of the data set.
        table: The CSV, below it.

    Raises:
        UserError: The CSV, a column or a file is missing, or a subject is listed twice.
    """
    path = Path(root) / table
    rows = read_table(path, ("subject", "image"))
    names = [row["subject"] for row in rows]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: subject {repeated[0]} is listed twice; list each subject once.")

    def find_file(row: Mapping[str, str], column: str) -> Path | None:
        if not row.get(column):
            return None
        return find_subject_file(path.parent, row[column], row["subject"])

    return {
        row["subject"]: make_subject(
            row["subject"],
            find_subject_file(path.parent, row["image"], row["subject"]),
            find_file(row, "labels"),
            find_file(row, "moving"),
        )
        for row in rows
    }
