"""Parsers of landmark files: tables, 3D Slicer, elastix, transformix, FSL, MNI tags and VTK.

Each returns numbered rows of text fields, with the names of the columns and the coordinate system
where the file states them.
"""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet_lab.data.io.tables import read_text
from regnet_lab.errors import UserError

Line = tuple[int, str]  # number in the file and text
Row = tuple[int, list[str]]  # number of the line and its fields

XYZ = ("x", "y", "z")
SLICER_SPACES = {"0": "ras", "ras": "ras", "1": "lps", "lps": "lps", "2": "voxel", "ijk": "voxel"}
FSL_SPACES = {"mm": "ras", "voxels": "voxel"}
FSL_HEADING = re.compile(r"coordinates in .*\(in (mm|voxels)\)", re.IGNORECASE)
TRANSFORMIX_OUTPUT = re.compile(r"OutputPoint\s*=\s*\[([^\]]*)\]")


@dataclass(frozen=True)
class LandmarkTable:
    """The content of a landmark file.

    Args:
        rows: Fields by line.
        header: Names of the columns; empty if there are none.
        space: ``voxel``, ``ras`` or ``lps`` where the file or its format states it.
    """

    rows: Sequence[Row]
    header: Sequence[str] = ()
    space: str | None = None


def _split_fields(line: str) -> list[str]:
    """Split a line at semicolons or tabs (numbers may then have decimal commas), commas or blanks.

    A delimiter in quotes belongs to the text.
    """
    delimiter = next((mark for mark in ";\t," if mark in line), "")
    if not delimiter:
        return [part.strip('"') for part in line.split()]
    (fields,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    fields = [field.strip(' "\t') for field in fields]
    return fields if delimiter == "," else [field.replace(",", ".") for field in fields]


def is_number(text: str) -> bool:
    """Check whether a field is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_tag(lines: Sequence[Line]) -> LandmarkTable:
    """Parse the rows after ``Points =`` of an MNI tag file, which end with a semicolon.

    Coordinates are in the world of MINC, RAS+ mm; with two volumes each row has two points.
    """
    start = next((i for i, (_, line) in enumerate(lines) if line.strip().startswith("Points")), -1)
    rows = [(n, line.replace(";", " ").split()) for n, line in lines[start + 1 :]]
    has_two = any(re.match(r"\s*Volumes\s*=\s*2", line) for _, line in lines[: start + 1])
    header = [f"{axis}{volume}" for volume in (1, 2) for axis in XYZ] if has_two else [*XYZ]
    trimmed = [(n, fields[: len(header)]) for n, fields in rows if fields]
    return LandmarkTable(trimmed, header, "ras")


def _take_declared(rows: list[Row], count: str) -> list[Row]:
    """Return the first ``count`` rows.

    Raises:
        ValueError: ``count`` is no number, or there are fewer.
    """
    if not count.strip().isdigit():
        raise ValueError(f"'{count}' is not a number of landmarks")
    if len(rows) < int(count):
        raise ValueError(f"declares {int(count)} landmarks but has {len(rows)}")
    return rows[: int(count)]


def parse_vtk(lines: Sequence[Line]) -> LandmarkTable:
    """Parse the points after ``POINTS n type`` of a legacy ASCII file, which may wrap anywhere."""
    headings = [i for i, (_, line) in enumerate(lines) if line.upper().startswith("POINTS ")]
    if not headings or not any(line.strip().upper() == "ASCII" for _, line in lines[:4]):
        return LandmarkTable([])
    body = lines[headings[0] + 1 :]
    end = next((i for i, (_, line) in enumerate(body) if line[0].isalpha()), len(body))
    numbers = [(n, field) for n, line in body[:end] for field in line.split()]
    triples = [numbers[i : i + 3] for i in range(0, len(numbers) - 2, 3)]
    rows = [(triple[0][0], [field for _, field in triple]) for triple in triples]
    return LandmarkTable(_take_declared(rows, lines[headings[0]][1].split()[1]), XYZ)


def parse_elastix(lines: Sequence[Line]) -> LandmarkTable:
    """Parse an elastix list: ``point`` (LPS+ mm) or ``index`` (voxels), their number, the rows."""
    rows = _take_declared([(n, line.split()) for n, line in lines[2:]], lines[1][1])
    return LandmarkTable(rows, space="lps" if lines[0][1].strip().lower() == "point" else "voxel")


def parse_transformix(lines: Sequence[Line]) -> LandmarkTable:
    """Parse the transformed points, ``OutputPoint`` in LPS+ mm, of transformix."""
    matches = [(n, TRANSFORMIX_OUTPUT.search(line)) for n, line in lines]
    return LandmarkTable([(n, match[1].split()) for n, match in matches if match], space="lps")


def parse_fcsv(lines: Sequence[Line]) -> LandmarkTable:
    """Parse a fiducial list of 3D Slicer, whose comments name coordinate system and columns.

    Without ``CoordinateSystem``, as written by old versions, it is RAS+.
    """
    pairs = [line.lstrip("# ").partition("=") for _, line in lines if line.startswith("#")]
    comments = {key.strip().lower(): value.strip() for key, _, value in pairs}
    system = comments.get("coordinatesystem", "RAS")
    if system.lower() not in SLICER_SPACES:
        raise ValueError(f"CoordinateSystem = {system} is unknown")
    header = [name.strip() for name in comments.get("columns", "id,x,y,z").split(",")]
    rows = [(n, next(csv.reader([line]))) for n, line in lines if not line.startswith("#")]
    trimmed = [(n, fields[: len(header)]) for n, fields in rows]
    return LandmarkTable(trimmed, header, SLICER_SPACES[system.lower()])


def parse_markups(text: str) -> LandmarkTable:
    """Parse the control points of the only markup in a ``.mrk.json`` of 3D Slicer.

    Rows are numbered by point.
    """
    try:
        markups = json.loads(text)["markups"]
        if len(markups) != 1:
            raise ValueError(f"has {len(markups)} markups instead of one")
        points: list[dict[str, Any]] = markups[0]["controlPoints"]
        rows = [(n, [repr(float(x)) for x in p["position"]]) for n, p in enumerate(points, start=1)]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError("has no markups with controlPoints") from error
    return LandmarkTable(rows, XYZ, _check_markup(markups[0], points))


def _check_markup(markup: dict[str, Any], points: Sequence[dict[str, Any]]) -> str:
    """Return the space of a markup after checking its unit and that all points are defined."""
    system = str(markup.get("coordinateSystem", "LPS"))
    if system.lower() not in SLICER_SPACES:
        raise ValueError(f"coordinateSystem {system} is unknown")
    if markup.get("coordinateUnits", "mm") not in ("mm", ["mm"] * 3):
        raise ValueError(f"coordinateUnits {markup['coordinateUnits']} must be mm")
    for point in points:
        if point.get("positionStatus", "defined") != "defined":
            raise ValueError(f"point {point.get('label', '')!r} has no defined position")
    return SLICER_SPACES[system.lower()]


def parse_table(lines: Sequence[Line]) -> LandmarkTable:
    """Parse a table, with or without a header, such as those of FSL, ANTs and Learn2Reg."""
    rows = [(n, _split_fields(line)) for n, line in lines]
    if not rows:
        return LandmarkTable([])
    first = rows[0][1]
    if heading := FSL_HEADING.search(lines[0][1]):
        return LandmarkTable(rows[1:], space=FSL_SPACES[heading[1].lower()])
    if not any(is_number(field) for field in first):
        while first and not first[-1]:  # left by a delimiter at the end of the line
            first.pop()
        return LandmarkTable(rows[1:], first)
    if first == [str(k) for k in range(len(first))] and len(first) > 1:
        rows = rows[1:]  # columns that pandas has numbered
    return LandmarkTable(rows)


def uncomment_header(lines: Sequence[Line]) -> list[Line]:
    """Leave out comments, but for the column names that numpy's ``savetxt`` writes into the last
    one before the rows.
    """
    start = next((i for i, (_, line) in enumerate(lines) if not line.startswith("#")), len(lines))
    rows = [(n, line) for n, line in lines[start:] if not line.startswith("#")]
    if not start or not rows:
        return rows
    number, comment = lines[start - 1]
    header = comment.lstrip("# ")
    names, fields = _split_fields(header), _split_fields(rows[0][1])
    is_header = len(names) == len(fields) > 1 and not any(map(is_number, names))
    return [(number, header), *rows] if is_header and all(map(is_number, fields)) else rows


def find_parser(path: Path, first: str) -> Callable[[Sequence[Line]], LandmarkTable]:
    """Return the parser for a file, by its suffix or else its first line that is no comment."""
    parsers = {".tag": parse_tag, ".vtk": parse_vtk, ".fcsv": parse_fcsv}
    if parser := parsers.get(path.suffix.lower()):
        return parser
    if first.strip().lower() in ("point", "index"):
        return parse_elastix
    return parse_transformix if TRANSFORMIX_OUTPUT.search(first) else parse_table


def read_landmark_table(path: Path) -> LandmarkTable:
    """Read the rows of a landmark file, without comments and empty lines."""
    text = read_text(path, "landmarks as a table")
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    lines = [(n, line) for n, line in numbered if not line.startswith("#")]
    try:
        if path.suffix.lower() == ".json":
            return parse_markups(text)
        parser = find_parser(path, lines[0][1] if lines else "")
        if parser is parse_table:
            lines = uncomment_header(numbered)
        return parser(numbered if parser is parse_fcsv else lines)
    except IndexError as error:
        raise UserError(f"{path}: ends before its landmarks begin.") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: {error}; correct it.") from error
