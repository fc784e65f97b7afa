"""Reading of landmarks: tables, MNI tag files, elastix point lists and VTK files.

Each format is parsed to numbered rows of text fields; :func:`read_landmarks` converts these to
voxel coordinates.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import CasePair, LandmarkFile
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

Line = tuple[int, str]  # number in the file and text
Row = tuple[int, list[str]]  # number of the line and its fields

SPACES = ("voxel", "ras", "lps")


def _read_lines(path: Path) -> list[Line]:
    """Read the numbered lines that are neither empty nor comments with #."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text; give landmarks as a table.") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [(n, line) for n, line in numbered if line.strip() and not line.startswith("#")]


def _split_fields(line: str) -> list[str]:
    """Split a line at semicolons (numbers may then have decimal commas), commas or blanks."""
    if ";" in line:
        return [field.strip(' "').replace(",", ".") for field in line.split(";")]
    parts = line.split(",") if "," in line else line.split()
    return [part.strip(' "\t') for part in parts]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_tag_rows(lines: Sequence[Line]) -> list[Row]:
    """Parse the rows after ``Points =`` of an MNI tag file, which end with a semicolon."""
    start = next((i for i, (_, line) in enumerate(lines) if line.strip().startswith("Points")), -1)
    rows = [(n, line.replace(";", " ").split()) for n, line in lines[start + 1 :]]
    return [(n, fields) for n, fields in rows if fields]


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


def parse_vtk_rows(lines: Sequence[Line]) -> list[Row]:
    """Parse the points after ``POINTS n type`` of a legacy ASCII file, which may wrap anywhere."""
    headings = [i for i, (_, line) in enumerate(lines) if line.upper().startswith("POINTS ")]
    if not headings or not any(line.strip().upper() == "ASCII" for _, line in lines[:4]):
        return []
    body = lines[headings[0] + 1 :]
    end = next((i for i, (_, line) in enumerate(body) if line[0].isalpha()), len(body))
    numbers = [(n, field) for n, line in body[:end] for field in line.split()]
    triples = [numbers[i : i + 3] for i in range(0, len(numbers) - 2, 3)]
    rows = [(triple[0][0], [field for _, field in triple]) for triple in triples]
    return _take_declared(rows, lines[headings[0]][1].split()[1])


def parse_elastix_rows(lines: Sequence[Line]) -> list[Row]:
    """Parse the rows of an elastix list, after ``point`` or ``index`` and their number."""
    return _take_declared([(n, line.split()) for n, line in lines[2:]], lines[1][1])


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Read the column names, if a table has a header, and the rows of a landmark file."""
    lines = _read_lines(path)
    first = lines[0][1].strip().lower() if lines else ""
    try:
        if path.suffix.lower() == ".tag":
            return [], parse_tag_rows(lines)
        if path.suffix.lower() == ".vtk":
            return [], parse_vtk_rows(lines)
        if first in ("point", "index"):
            return [], parse_elastix_rows(lines)
    except IndexError as error:
        raise UserError(f"{path}: ends before its landmarks begin.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; correct it.") from error
    rows = [(n, _split_fields(line)) for n, line in lines]
    has_header = bool(rows) and not any(_is_number(field) for field in rows[0][1])
    return (rows[0][1], rows[1:]) if has_header else ([], rows)


def _find_column(path: Path, column: int | str, header: Sequence[str]) -> int:
    if isinstance(column, int):
        return column
    if column not in header:
        names = ", ".join(name for name in header if name) or "no column names"
        raise UserError(f"{path}: there is no column '{column}'; the file has {names}.")
    return header.index(column)


def _parse_number(path: Path, row: Row, column: int) -> float:
    line, fields = row
    if column >= len(fields):
        raise UserError(f"{path}, line {line}: there is no column {column}, only {len(fields)}.")
    if not _is_number(fields[column]) or not np.isfinite(float(fields[column])):
        raise UserError(
            f"{path}, line {line}: '{fields[column]}' in column {column} is not a finite number."
        )
    return float(fields[column])


def read_landmarks(file: LandmarkFile, affine: coordinates.Matrix) -> NDArray[np.float32]:
    """Read landmarks in voxels of the image to which they belong.

    Args:
        file: The file, its columns in the order x, y(, z), and the space of its coordinates.
        affine: (4, 4) from voxels of the image to millimetres, RAS+.

    Returns:
        (N, D), with one coordinate for each column.
    """
    header, rows = read_rows(file.path)
    if file.space not in SPACES:
        raise UserError(f"{file.path}: space '{file.space}' must be voxel, ras or lps.")
    columns = [_find_column(file.path, column, header) for column in file.columns]
    if not rows:
        raise UserError(f"{file.path}: contains no landmarks, or none in readable text.")
    points = np.array([[_parse_number(file.path, row, c) for c in columns] for row in rows])
    points *= file.scale
    if file.space == "lps":
        points = coordinates.flip_points(points)
    if file.space != "voxel":
        points = coordinates.world_to_voxel(affine, points)
    return points.astype(np.float32)


def find_points_outside(points: NDArray, shape: Iterable[int]) -> NDArray[np.bool_]:
    """Find the points (N, D) that lie outside all voxels of a grid: x < -1/2 or x > n - 1/2."""
    limit = np.array(tuple(shape)) - 0.5
    return np.any((points < -0.5) | (points > limit), axis=1)


def check_landmark_counts(pair: CasePair, counts: Sequence[int | None]) -> None:
    """Raise a UserError if both cases of a pair have landmarks, but not the same number."""
    first, second = (case.points and case.points.path for case in pair)
    if None not in counts and counts[0] != counts[1]:
        raise UserError(f"{first} has {counts[0]} landmarks, but {second} has {counts[1]}.")
