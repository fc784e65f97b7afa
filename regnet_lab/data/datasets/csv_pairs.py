"""The user's own pairs: one in each row of a CSV, or of a list in the configuration."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regnet_lab.data.case import Case, CasePair, LandmarkFile
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.io.tables import check_columns, read_table
from regnet_lab.data.splits import SPLITS
from regnet_lab.errors import UserError

log = logging.getLogger(__name__)

SIDES = ("fixed", "moving")
ANNOTATIONS = ("labels", "mask", "points")
FILE_COLUMNS = (*SIDES, *(f"{side}_{annotation}" for annotation in ANNOTATIONS for side in SIDES))
COLUMNS = (*FILE_COLUMNS, "name", "split")
IMAGE_SUFFIX = re.compile(r"(\.nii)?\.[A-Za-z]+$")

Row = dict[str, str]  # cells by column, without empty ones
Column = int | str


def list_csv_pairs(
    split: str,
    prepare: Prepare,
    table: str | Sequence[Mapping[str, object]],
    root: str | None = None,
    points_space: str = "voxel",
    fixed_points_columns: Sequence[Column] | None = None,
    moving_points_columns: Sequence[Column] | None = None,
) -> CasePairs:
    """List the pairs of a split.

    ``table`` is a CSV, or its rows as mappings.  Columns ``fixed`` and ``moving`` name images in
    any format of :func:`regnet_lab.data.io.images.decode_image`, relative to ``root``, by default
    the folder of the CSV.  Optional are ``fixed_labels``, ``fixed_mask``, ``fixed_points``, the
    same for ``moving``, ``name`` (of the pair) and ``split``.  If no row has a ``split``, every
    split has all rows; if none is for test, those for val are tested.

    All landmarks are in ``points_space``, ``voxel``, ``ras`` or ``lps``, unless a file states its
    own.  Their x, y(, z) are in columns that are given by number or name, or in those that the file
    names so.
    """
    listed: Sequence[Mapping[str, Any]]
    if isinstance(table, str):
        listed, source = read_table(Path(table), ()), table
        folder = Path(root or Path(table).parent)
    else:
        listed, source, folder = table, "table", Path(root or "")
    check_columns(source, {column for row in listed for column in row}, COLUMNS)
    if not listed:
        raise UserError(f"{source}: contains no pairs; add one row per pair.")
    rows = {
        f"{source}, row {number}": {c: str(v) for c, v in row.items() if v not in ("", None)}
        for number, row in enumerate(listed, start=1)
    }
    check_files(rows, folder)
    columns = {"fixed": fixed_points_columns, "moving": moving_points_columns}

    def make_case(row: Row, side: str) -> Case:
        files = {annotation: row.get(f"{side}_{annotation}") for annotation in ANNOTATIONS}
        labels, mask, points = (folder / file if file else None for file in files.values())
        chosen = columns[side]
        chosen = None if chosen is None else tuple(chosen)
        landmarks = LandmarkFile(points, chosen, points_space) if points else None
        return Case(make_case_name(row[side]), folder / row[side], labels, mask, landmarks)

    case_pairs: dict[str, CasePair] = {}
    for place, row in select_split_rows(split, rows, source).items():
        fixed, moving = make_case(row, "fixed"), make_case(row, "moving")
        name = row.get("name") or f"{fixed.name}_{moving.name}"
        if name in case_pairs:
            raise UserError(
                f"{place}: another pair above is also named {name}; give it its own name."
            )
        case_pairs[name] = fixed, moving
    return CasePairs(list(case_pairs.values()), prepare, list(case_pairs))


def make_case_name(file: str) -> str:
    """Return a name for an image: its path without suffix and slashes.

    >>> make_case_name("a/b.nii.gz")
    'a-b'
    """
    return IMAGE_SUFFIX.sub("", file).strip("./").replace("/", "-")


def check_files(rows: Mapping[str, Row], folder: Path) -> None:
    """Raise a UserError if a row has no image or a file does not exist."""
    for place, row in rows.items():
        if missing_sides := [side for side in SIDES if side not in row]:
            raise UserError(f"{place}: the column '{missing_sides[0]}' must name an image.")
    cells = [
        (place, column, folder / row[column])
        for place, row in rows.items()
        for column in FILE_COLUMNS
        if column in row
    ]
    if missing := [cell for cell in cells if not cell[2].exists()]:
        place, column, path = missing[0]
        more = f" ({len(missing) - 1} more are missing, too)" if missing[1:] else ""
        raise UserError(f"{place}, column {column}: {path} does not exist{more}.")


def select_split_rows(split: str, rows: Mapping[str, Row], source: str) -> Mapping[str, Row]:
    """Select the rows of a split, by their place in the table ``source``."""
    if not any("split" in row for row in rows.values()):
        if split == "train":
            log.warning("%s has no column 'split': training and validation share its pairs", source)
        return rows
    for place, row in rows.items():
        if row.get("split") not in SPLITS:
            value = row.get("split", "")
            raise UserError(f"{place}, column split: '{value}' must be one of {', '.join(SPLITS)}.")
    parts = {name: {p: r for p, r in rows.items() if r["split"] == name} for name in SPLITS}
    return parts["val"] if split == "test" and not parts["test"] else parts[split]
