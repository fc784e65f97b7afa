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
    find_optional_file,
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
    """List the pairs of a split (:func:`regnet_lab.data.splits.select_subjects`).

    Training uses all ordered pairs of different subjects.  Validation and test register subject
    i + 1 to subject i, and the first to the last, as GraDIRN does.  With an atlas, every other
    subject is registered to it; it is a subject, or an image file with its label file.

    ``layout(root)`` returns the subjects by name.  ``slice`` is the slice along the last axis to
    use; a float is a relative position.
    """
    subjects = layout(root)
    names = select_subjects(split, list(subjects), splits, root)
    if atlas is not None:
        fixed = subjects[atlas].fixed if atlas in subjects else make_atlas_case(atlas, atlas_labels)
        pairs = [(fixed, subjects[name].moving) for name in names if name != atlas]
    else:
        following = names[1:] + names[:1] if len(names) > 1 else []
        chosen = permutations(names, 2) if split == "train" else zip(names, following, strict=False)
        pairs = [(subjects[a].fixed, subjects[b].moving) for a, b in chosen]
    slices = [(replace(f, slice=slice), replace(m, slice=slice)) for f, m in pairs]
    return CasePairs(slices, prepare)


def make_atlas_case(image: str, labels: str | None) -> Case:
    """Return the case of an atlas given as files."""
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

    ``image``, ``labels`` and ``moving`` are paths below ``root`` with ``{}`` for the subject
    (:func:`regnet_lab.data.splits.find_subjects`); ``moving``, such as ``{}/T2_brain.nii.gz``, only
    where moving images differ from fixed ones.
    """

    def make(name: str, path: Path) -> SubjectCases:
        others = (find_optional_file(root, pattern, name) for pattern in (labels, moving))
        return make_subject(name, path, *others)

    return {name: make(name, path) for name, path in find_subjects(root, image).items()}


def read_subject_table(root: str, table: str = "subjects.csv") -> dict[str, SubjectCases]:
    """Read the subjects of a CSV below ``root``, in its order.

    Its columns are ``subject`` and ``image``, optionally ``labels`` and ``moving``.  Files are
    absolute or relative to the folder of the CSV.
    """
    path = Path(root) / table
    rows = read_table(path, ("subject", "image"))
    names = [row["subject"] for row in rows]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: subject {repeated[0]} is listed twice; list each subject once.")

    def make(name: str, row: Mapping[str, str]) -> SubjectCases:
        others = (find_optional_file(path.parent, row.get(c), name) for c in ("labels", "moving"))
        return make_subject(name, find_subject_file(path.parent, row["image"], name), *others)

    return {row["subject"]: make(row["subject"], row) for row in rows}
