"""Landmarks as they are published: tables, MNI tags, elastix point lists, VTK.

Each format becomes numbered rows of text fields; one function makes coordinates of them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import Points
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

Row = tuple[int, list[str]]  # line of the file, fields

SPACES = ("voxel", "ras", "lps")


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbered lines with something on them, without remarks that begin with #."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text; give landmarks as a table.") from error
    numbered = enumerate(text.splitlines(), start=1)
    return [(n, line) for n, line in numbered if line.strip() and not line.startswith("#")]


def _fields(line: str) -> list[str]:
    """Fields between semicolons (numbers may then have decimal commas), commas or blanks."""
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


def tag_rows(lines: Sequence[tuple[int, str]]) -> list[Row]:
    """Rows behind ``Points =`` of an MNI tag file, whose list ends with a semicolon."""
    start = next((i for i, (_, line) in enumerate(lines) if line.strip().startswith("Points")), -1)
    rows = [(n, line.replace(";", " ").split()) for n, line in lines[start + 1 :]]
    return [(n, fields) for n, fields in rows if fields]


def _promised(rows: list[Row], count: int) -> list[Row]:
    """The first ``count`` rows.

    Raises:
        ValueError: There are fewer.
    """
    if len(rows) < count:
        raise ValueError(f"promises {count} landmarks but has {len(rows)}")
    return rows[:count]


def vtk_rows(lines: Sequence[tuple[int, str]]) -> list[Row]:
    """Rows of three behind ``POINTS n type`` of a legacy ASCII file, which wraps them anywhere."""
    heads = [i for i, (_, line) in enumerate(lines) if line.upper().startswith("POINTS ")]
    if not heads or not any(line.strip().upper() == "ASCII" for _, line in lines[:4]):
        return []
    below = lines[heads[0] + 1 :]
    end = next((i for i, (_, line) in enumerate(below) if line[0].isalpha()), len(below))
    numbers = [(n, field) for n, line in below[:end] for field in line.split()]
    triples = [numbers[i : i + 3] for i in range(0, len(numbers) - 2, 3)]
    rows = [(triple[0][0], [field for _, field in triple]) for triple in triples]
    return _promised(rows, int(lines[heads[0]][1].split()[1]))


def list_rows(lines: Sequence[tuple[int, str]]) -> list[Row]:
    """Rows of an elastix list, behind ``point`` or ``index`` and their number."""
    return _promised([(n, line.split()) for n, line in lines[2:]], int(lines[1][1]))


def rows_of(path: Path) -> tuple[list[str], list[Row]]:
    """Names of the columns, if a table has a header, and the rows of a file of landmarks."""
    lines = _lines(path)
    first = lines[0][1].strip().lower() if lines else ""
    try:
        if path.suffix.lower() == ".tag":
            return [], tag_rows(lines)
        if path.suffix.lower() == ".vtk":
            return [], vtk_rows(lines)
        if first in ("point", "index"):
            return [], list_rows(lines)
    except IndexError as error:
        raise UserError(f"{path}: ends before its landmarks begin.") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; count them again.") from error
    rows = [(n, _fields(line)) for n, line in lines]
    header = bool(rows) and not any(_is_number(field) for field in rows[0][1])
    return (rows[0][1], rows[1:]) if header else ([], rows)


def _position(path: Path, column: int | str, header: Sequence[str]) -> int:
    if isinstance(column, int):
        return column
    if column not in header:
        names = ", ".join(name for name in header if name) or "no names"
        raise UserError(f"{path}: there is no column '{column}'; the file has {names}.")
    return header.index(column)


def _number(path: Path, row: Row, column: int) -> float:
    line, fields = row
    if column >= len(fields):
        raise UserError(f"{path}, line {line}: there is no column {column}, only {len(fields)}.")
    if not _is_number(fields[column]) or not np.isfinite(float(fields[column])):
        raise UserError(
            f"{path}, line {line}: '{fields[column]}' in column {column} is not a finite number."
        )
    return float(fields[column])


def read_points(points: Points, affine: coordinates.Matrix) -> NDArray[np.float32]:
    """Landmarks in voxels of the image they belong to.

    Args:
        points: The file, its columns in the order x, y(, z), and the space they are in.
        affine: (4, 4) voxel-to-world matrix of the image, RAS+.

    Returns:
        (N, D) with one coordinate for each column.

    Raises:
        UserError: The file is missing or holds none; a column is missing; a field is no number.
    """
    header, rows = rows_of(points.path)
    if points.space not in SPACES:
        raise UserError(f"{points.path}: space '{points.space}' must be voxel, ras or lps.")
    columns = [_position(points.path, column, header) for column in points.columns]
    if not rows:
        raise UserError(f"{points.path}: holds no landmarks, at least none in readable text.")
    table = np.array([[_number(points.path, row, c) for c in columns] for row in rows])
    table *= points.scale
    if points.space == "lps":
        table = coordinates.flip_points(table)
    if points.space != "voxel":
        table = coordinates.world_to_voxel(affine, table)
    return table.astype(np.float32)


def outside(points: NDArray, shape: Iterable[int]) -> NDArray[np.bool_]:
    """Which of the points (N, D) lie outside every cell of a grid: x < -1/2 or x > n - 1/2."""
    limit = np.array(tuple(shape)) - 0.5
    return np.array([(point < -0.5).any() or (point > limit).any() for point in points], bool)
