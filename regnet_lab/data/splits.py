"""Subjects found by file names, and their division into training, validation and test."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from regnet_lab.data.io.images import require_folder
from regnet_lab.errors import UserError

SplitSpec = Mapping[str, int | float | Sequence[str] | str | None]

DEFAULT_SPLITS: SplitSpec = {"train": 0.8, "val": 0.1, "test": 0.1}

SPLITS = ("train", "val", "test")


def find_subjects(root: str | Path, pattern: str) -> dict[str, Path]:
    """Find one file of every subject, sorted by subject.

    Args:
        root: Folder of the data set.
        pattern: Path below it with ``{}`` for the subject, as in ``{}/T1_brain.nii.gz`` or
            ``img_{}.nii.gz``.  If no file matches, subjects may lie one folder deeper, which then
            is part of their name (``train/sub1``); a second ``{}`` is the name without it.
    """
    folder = require_folder(root, pattern)
    before, *after = pattern.split("{}")
    suffix = "(?P=base)".join(re.escape(part) for part in after)
    for depth in ("", "*/"):
        expression = re.escape(before) + f"(?P<name>{depth and '[^/]+/'}(?P<base>[^/]+))" + suffix
        paths = sorted(folder.glob(before + depth + "*" + "*".join(after)))
        matches = [(re.fullmatch(expression, p.relative_to(folder).as_posix()), p) for p in paths]
        if subjects := {match["name"]: path for match, path in matches if match}:
            return subjects
    raise UserError(f"{folder}: no file in this folder is named {pattern}, {{}} being any name.")


def find_subject_file(root: str | Path, pattern: str, subject: str) -> Path:
    """Return the file of a subject for a pattern as in :func:`find_subjects`."""
    base = PurePosixPath(subject).name
    path = Path(root) / pattern.replace("{}", subject, 1).replace("{}", base)
    if not path.exists():
        raise UserError(f"{path}: this file of subject {subject} is missing.")
    return path


def find_optional_file(root: str | Path, pattern: str | None, subject: str) -> Path | None:
    """Return the file of :func:`find_subject_file`, or None without a pattern."""
    return find_subject_file(root, pattern, subject) if pattern else None


def select_subjects(
    split: str, subjects: Sequence[str], splits: SplitSpec, root: str | Path = "."
) -> list[str]:
    """Select the subjects of a split, in their order.

    Args:
        split: ``train``, ``val`` or ``test``.
        subjects: All subjects.
        splits: Numbers for all of ``train``, ``val`` and ``test``, or names for all.  An integer is
            a number of subjects, a float a fraction of all, rounded down: training takes the first
            subjects, test the last and validation those before, so that a smaller training set
            changes neither.  Names are a list, in which ``*``, ``?`` and ``[...]`` match as in a
            shell, or a text file with one of these per line.  Without names for test, the
            validation subjects are tested.
        root: Folder of the text files.
    """
    specified = {name: value for name, value in splits.items() if value is not None}
    counts = {name: n for name, n in specified.items() if isinstance(n, int | float)}
    names = {name: n for name, n in specified.items() if not isinstance(n, int | float)}
    if not {"train", "val"} <= specified.keys() <= {*SPLITS} or (counts and names):
        raise UserError(
            f"splits={dict(splits)}: give train, val and test, either numbers or names for all."
        )
    if counts:
        parts = _split_by_count(subjects, counts)
    else:
        parts = {
            name: _select_by_name(subjects, patterns, root) for name, patterns in names.items()
        }
    if shared := [s for s in parts["train"] if s in {*parts["val"], *parts.get("test", ())}]:
        raise UserError(
            f"splits: subject {shared[0]} is in training and in validation or test; "
            "assign it to one of them."
        )
    return parts.get(split) or parts["val"]


def _select_by_name(
    subjects: Sequence[str], patterns: Sequence[str] | str, root: str | Path
) -> list[str]:
    """Select the subjects that match one of the patterns, or one of the lines of a text file."""
    if isinstance(patterns, str):
        path = Path(root) / patterns
        if not path.is_file():
            raise UserError(f"{path}: this file, named in splits, is missing.")
        patterns = path.read_text(encoding="utf-8").split()
    selected = set()
    for pattern in map(str, patterns):
        matches = {subject for subject in subjects if fnmatchcase(subject, pattern)}
        if not matches:
            raise UserError(
                f"splits: '{pattern}' matches no subject; there are {subjects[0]} to "
                f"{subjects[-1]} ({len(subjects)})."
            )
        selected |= matches
    return [subject for subject in subjects if subject in selected]


def _split_by_count(
    subjects: Sequence[str], counts: Mapping[str, int | float]
) -> dict[str, list[str]]:
    """Split subjects into the first, those before the last and the last, by number or fraction."""
    total = len(subjects)
    numbers = {k: n if isinstance(n, int) else int(n * total + 1e-9) for k, n in counts.items()}
    train, val, test = (numbers.get(name, 0) for name in SPLITS)
    if min(train, val, test) < 0 or train + val + test > total:
        raise UserError(
            f"splits={dict(counts)}: asks for {train} + {val} + {test} subjects of {total}."
        )
    return {
        "train": list(subjects[:train]),
        "val": list(subjects[total - val - test : total - test]),
        "test": list(subjects[total - test :]),
    }
