"""The user's own pairs: one in each row of a CSV, or of a list in the configuration."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from regnet_lab.data.case import Case, CasePairs, Points
from regnet_lab.data.io.images import read_table
from regnet_lab.data.splits import SPLITS
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

log = logging.getLogger(__name__)

SIDES = ("fixed", "moving")
BELONGING = ("labels", "mask", "points")
FILES = (*SIDES, *(f"{side}_{part}" for part in BELONGING for side in SIDES))
COLUMNS = (*FILES, "name", "split")
SUFFIX = re.compile(r"(\.nii)?\.[A-Za-z]+$")

Row = dict[str, str]  # what its cells say, by column; an empty cell is absent
Column = int | str


class NamedPairs(CasePairs):
    """Pairs of cases with names of their own."""

    def __init__(
        self,
        pairs: Mapping[str, tuple[Case, Case]],
        prepare: Callable[[Case, Case], Pair],
    ) -> None:
        super().__init__(list(pairs.values()), prepare)
        self.names = list(pairs)

    def __getitem__(self, index: int) -> Pair:
        return Pair(**{**super().__getitem__(index), "name": self.names[index]})  # type: ignore


def pairs(
    split: str,
    prepare: Callable[[Case, Case], Pair],
    table: str | Sequence[Mapping[str, object]],
    root: str | None = None,
    points_space: str = "voxel",
    fixed_columns: Sequence[Column] = (0, 1, 2),
    moving_columns: Sequence[Column] = (0, 1, 2),
) -> NamedPairs:
    """The pairs of a split.

    Columns ``fixed`` and ``moving`` name images in any format of
    :func:`regnet_lab.data.io.images.decode`; optional are ``fixed_labels``, ``fixed_mask``,
    ``fixed_points``, the same for ``moving``, ``name`` (of the pair) and ``split``.  Where no row
    has a ``split``, every split has all rows; where none is for test, those for val are tested.

    Args:
        split: ``train``, ``val`` or ``test``.
        prepare: Makes a pair of two cases.
        table: A CSV, or its rows as mappings.
        root: Folder to which the files named in the rows are relative; null: that of the CSV.
        points_space: Of all landmarks: ``voxel``, ``ras`` or ``lps``.
        fixed_columns: Of x, y(, z) in the files of ``fixed_points``, by number or name.
        moving_columns: The same for ``moving_points``.

    Raises:
        UserError: The CSV is faulty or empty, a column is unknown, or a row lacks an image, names
            a file that is not there, a split that is none, or a pair for the second time.
    """
    listed: Sequence[Mapping[str, Any]]
    if isinstance(table, str):
        listed, source = read_table(Path(table), ()), table
        folder = Path(root or Path(table).parent)
    else:
        listed, source, folder = table, "table", Path(root or "")
    check_columns(source, {column for row in listed for column in row})
    if not listed:
        raise UserError(f"{source}: lists no pairs; give a row for each.")
    rows = {
        f"{source}, row {number}": {c: str(v) for c, v in row.items() if v not in ("", None)}
        for number, row in enumerate(listed, start=1)
    }
    check_files(rows, folder)
    columns = {"fixed": tuple(fixed_columns), "moving": tuple(moving_columns)}

    def case(row: Row, side: str) -> Case:
        files = {part: row.get(f"{side}_{part}") for part in BELONGING}
        labels, mask, points = (file and folder / file for file in files.values())
        marks = Points(points, columns[side], points_space) if points else None
        return Case(title(row[side]), folder / row[side], labels or None, mask or None, marks)

    chosen: dict[str, tuple[Case, Case]] = {}
    for place, row in of_split(split, rows, source).items():
        fixed, moving = case(row, "fixed"), case(row, "moving")
        name = row.get("name") or f"{fixed.name}_{moving.name}"
        if name in chosen:
            raise UserError(f"{place}: there is a pair {name} above; give each its own name.")
        chosen[name] = fixed, moving
    return NamedPairs(chosen, prepare)


def title(file: str) -> str:
    """A name for an image: its path without the ending, ``a/b.nii.gz`` being ``a-b``."""
    return SUFFIX.sub("", file).strip("./").replace("/", "-")


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of ``words`` most like ``word``."""
    return get_close_matches(word.lower(), list(words), 1, 0)[0]


def check_columns(source: str, found: Iterable[str]) -> None:
    """Raises UserError for a column that is not one of ``COLUMNS``."""
    if unknown := sorted(set(found) - {*COLUMNS}):
        raise UserError(
            f"{source}: there is no column '{unknown[0]}' to use; do you mean "
            f"'{nearest(unknown[0], COLUMNS)}'? Possible are {', '.join(COLUMNS)}."
        )


def check_files(rows: Mapping[str, Row], folder: Path) -> None:
    """Raises UserError for a row without an image, and for files that do not exist."""
    for place, row in rows.items():
        if lacking := [side for side in SIDES if side not in row]:
            raise UserError(f"{place}: the column '{lacking[0]}' must name an image.")
    cells = [(place, c, folder / row[c]) for place, row in rows.items() for c in FILES if c in row]
    if missing := [cell for cell in cells if not cell[2].exists()]:
        place, column, path = missing[0]
        more = f" ({len(missing) - 1} more are missing, too)" if missing[1:] else ""
        raise UserError(f"{place}, column {column}: {path} does not exist{more}.")


def of_split(split: str, rows: Mapping[str, Row], source: str) -> Mapping[str, Row]:
    """The rows of a split, by their place in the table.

    Raises:
        UserError: Some rows have a split and others have none, or one that does not exist.
    """
    if not any("split" in row for row in rows.values()):
        if split == "train":
            log.warning("%s has no column 'split': training and validation share its pairs", source)
        return rows
    for place, row in rows.items():
        if row.get("split") not in SPLITS:
            raise UserError(
                f"{place}, column split: '{row.get('split', '')}' must be one of "
                f"{', '.join(SPLITS)}."
            )
    parts = {name: {p: r for p, r in rows.items() if r["split"] == name} for name in SPLITS}
    return parts["val"] if split == "test" and not parts["test"] else parts[split]
