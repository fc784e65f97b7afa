"""Subjects found by the names of their files, and their division into the three splits."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from regnet_lab.data.io.images import existing_folder
from regnet_lab.errors import UserError

Splits = Mapping[str, int | float | Sequence[str] | str | None]

SHARES: Splits = {"train": 0.8, "val": 0.1, "test": 0.1}

SPLITS = ("train", "val", "test")


def find_subjects(root: str | Path, pattern: str) -> dict[str, Path]:
    """One file of every subject, by the subject's name.

    Args:
        root: Folder of the data set.
        pattern: Path below it, ``{}`` standing for the name, as in ``{}/T1_brain.nii.gz`` or
            ``img_{}.nii.gz``. Where no file has such a path, the subjects may lie one folder
            deeper, which then is part of their name (``train/sub1``); a second ``{}`` is the name
            without it.

    Raises:
        UserError: There is no such file.
    """
    folder = existing_folder(root, pattern)
    before, *after = pattern.split("{}")
    own = "(?P=own)".join(re.escape(part) for part in after)
    for depth in ("", "*/"):
        expression = re.escape(before) + f"(?P<name>{depth and '[^/]+/'}(?P<own>[^/]+))" + own
        hits = sorted(folder.glob(before + depth + "*" + "*".join(after)))
        matches = [(re.fullmatch(expression, p.relative_to(folder).as_posix()), p) for p in hits]
        if found := {match["name"]: path for match, path in matches if match}:
            return found
    raise UserError(f"{folder}: no file in this folder is named {pattern}, {{}} being any name.")


def file_of(root: str | Path, pattern: str, subject: str) -> Path:
    """The file of a subject by the pattern that names it, as in :func:`find_subjects`.

    Raises:
        UserError: It does not exist.
    """
    own = PurePosixPath(subject).name
    path = Path(root) / pattern.replace("{}", subject, 1).replace("{}", own)
    if not path.exists():
        raise UserError(f"{path}: this file of subject {subject} is missing.")
    return path


def of_split(
    split: str, subjects: Sequence[str], splits: Splits, root: str | Path = "."
) -> list[str]:
    """The subjects of a split, in their order.

    Args:
        split: ``train``, ``val`` or ``test``.
        subjects: All there are.
        splits: For ``train``, ``val`` and ``test`` either all numbers or all names. A whole number
            counts subjects, another is a share of all, rounded down; training takes the first
            ones, test the last ones and validation those before, so that neither changes when
            training is given fewer. Names are a list, where ``*``, ``?`` and ``[...]`` match as in
            a shell, or a text file with one of these a line. Where test has none, the subjects for
            validation are tested.
        root: Folder in which the text files lie.

    Raises:
        UserError: A name matches no subject, a subject to train on is also to be judged, or there
            are fewer subjects than asked for.
    """
    given = {name: value for name, value in splits.items() if value is not None}
    numeric = {name for name, value in given.items() if isinstance(value, int | float)}
    if not {"train", "val"} <= given.keys() <= {*SPLITS} or numeric not in (set(), {*given}):
        raise UserError(
            f"splits={dict(splits)}: give train, val and test, either numbers or names for all."
        )
    if numeric:
        parts = _counted(subjects, given)  # type: ignore[arg-type]
    else:
        parts = {name: _named(subjects, wanted, root) for name, wanted in given.items()}  # type: ignore
    if shared := [s for s in parts["train"] if s in {*parts["val"], *parts.get("test", ())}]:
        raise UserError(
            f"splits: subject {shared[0]} is trained on and judged; give it to one of the two."
        )
    return parts.get(split) or parts["val"]


def _named(subjects: Sequence[str], wanted: Sequence[str] | str, root: str | Path) -> list[str]:
    """The subjects that match one of the patterns, or of the lines of a text file."""
    if isinstance(wanted, str):
        path = Path(root) / wanted
        if not path.is_file():
            raise UserError(f"{path}: this file, named in splits, is missing.")
        wanted = path.read_text(encoding="utf-8").split()
    found = set()
    for pattern in map(str, wanted):
        matches = {subject for subject in subjects if fnmatchcase(subject, pattern)}
        if not matches:
            raise UserError(
                f"splits: '{pattern}' matches no subject; there are {subjects[0]} to "
                f"{subjects[-1]} ({len(subjects)})."
            )
        found |= matches
    return [subject for subject in subjects if subject in found]


def _counted(subjects: Sequence[str], numbers: Mapping[str, int | float]) -> dict[str, list[str]]:
    """The first subjects, those before the last and the last, by count or share."""
    total = len(subjects)
    counts = {
        name: n if isinstance(n, int) else int(n * total + 1e-9) for name, n in numbers.items()
    }
    train, val, test = (counts.get(name, 0) for name in SPLITS)
    if min(train, val, test) < 0 or train + val + test > total:
        raise UserError(
            f"splits={dict(numbers)}: asks for {train} + {val} + {test} subjects of {total}."
        )
    return {
        "train": list(subjects[:train]),
        "val": list(subjects[total - val - test : total - test]),
        "test": list(subjects[total - test :]),
    }
