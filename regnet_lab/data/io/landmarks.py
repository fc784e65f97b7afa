"""Reading of landmarks in voxels of their image, and checks of their number and position."""

import logging
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.case import CasePair, LandmarkFile
from regnet_lab.data.io.landmark_formats import LandmarkTable, Row, is_number, read_landmark_table
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.utils.logs import log_once

SPACES = ("voxel", "ras", "lps")
NAMED_AXES = {"xyz": None, "ras": "ras", "lps": "lps", "ijk": "voxel"}  # and the space they state
UNIT_SPACES = {"mm": "mm", "vox": "voxel"}  # of a unit in the names of the columns
AXIS_NAME = re.compile(
    r"(?:(?:pos|position|coord|coordinate)[ _.-]?)?([a-z])[ _]?(?:[(\[]?(mm|vox)(?:els?)?[)\]]?)?"
)

log = logging.getLogger(__name__)
log_info = partial(log_once, log, level=logging.INFO)
log_warning = partial(log_once, log)


def _find_named_columns(header: Sequence[str]) -> tuple[list[int], str | None]:
    """Find the columns named x, y(, z), or R, A(, S), L, P(, S) or I, J(, K), in any case.

    Returns:
        Their numbers, none if there are no such columns, and the space that the names state:
        ``mm`` if only their unit is known.
    """
    matches = [AXIS_NAME.fullmatch(name.strip().lower()) for name in header]
    letters = [match[1] if match else "" for match in matches]
    for axes, space in NAMED_AXES.items():
        present = [axis for axis in axes if letters.count(axis) == 1]
        if "".join(present) in (axes, axes[:2]) and not letters.count(axes[2]) > 1:
            columns = [letters.index(axis) for axis in present]
            units = {str(match[2]) for match in (matches[k] for k in columns) if match}
            return columns, space or UNIT_SPACES.get(" ".join(units))
    return [], None


def _find_columns(path: Path, table: LandmarkTable) -> tuple[list[int], str | None]:
    """Find the columns of coordinates where the user chose none, and the space they state.

    Raises:
        UserError: There is a header without names of axes, or more than three columns without one.
    """
    if table.header:
        columns, space = _find_named_columns(table.header)
        if not columns:
            raise UserError(
                f"{path}: among its columns {', '.join(table.header)} there is not exactly one x, "
                "y and z; choose them by fixed_points_columns and moving_points_columns, by name "
                "or by number from 0."
            )
        return columns, space
    lengths = {len(fields) for _, fields in table.rows}
    if max(lengths) > 3:
        raise UserError(
            f"{path}: has up to {max(lengths)} columns without names; choose those of x, y and z "
            "by fixed_points_columns and moving_points_columns, by number from 0."
        )
    return list(range(max(lengths))), None


def _find_column(path: Path, column: int | str, header: Sequence[str]) -> int:
    if isinstance(column, int):
        return column
    if column not in header:
        names = ", ".join(name for name in header if name) or "no column names"
        raise UserError(f"{path}: there is no column '{column}'; the file has {names}.")
    return header.index(column)


def _check_row_lengths(path: Path, table: LandmarkTable) -> None:
    """Raise a UserError if a row has more fields than the header."""
    count = len(table.header)
    for line, fields in table.rows if count else ():
        if any(fields[count:]):
            raise UserError(
                f"{path}, line {line}: has {len(fields)} fields, but the header only {count}."
            )


def _parse_number(path: Path, row: Row, column: int) -> float:
    line, fields = row
    if column >= len(fields):
        raise UserError(f"{path}, line {line}: there is no column {column}, only {len(fields)}.")
    if not is_number(fields[column]) or not np.isfinite(float(fields[column])):
        raise UserError(
            f"{path}, line {line}: '{fields[column]}' in column {column} is not a finite number."
        )
    return float(fields[column])


def _choose_columns(file: LandmarkFile, table: LandmarkTable) -> tuple[list[int], str | None]:
    """Return the columns of coordinates and the space that the file states, if it does.

    Raises:
        UserError: The names of the columns contradict the space of ``file``.
    """
    if file.columns is not None:
        columns = [_find_column(file.path, column, table.header) for column in file.columns]
        return columns, table.space
    columns, named = _find_columns(file.path, table)
    if named != "mm":
        return columns, table.space or named
    if file.space == "voxel" and table.space is None:
        raise UserError(
            f"{file.path}: its columns are in mm, not in voxels; set points_space=ras or lps."
        )
    return columns, table.space


def read_coordinates(file: LandmarkFile) -> tuple[NDArray[np.float64], str]:
    """Read the coordinates in a file, (N, D), and their space: voxel, ras or lps.

    The space is that which the file states, in its format or column names, or else that of
    ``file``.
    """
    path = file.path
    if file.space not in SPACES:
        raise UserError(f"{path}: space '{file.space}' must be voxel, ras or lps.")
    table = read_landmark_table(path)
    if not table.rows:
        raise UserError(f"{path}: contains no landmarks, or none in readable text.")
    _check_row_lengths(path, table)
    columns, stated = _choose_columns(file, table)
    if stated and stated != file.space:
        log = log_info if file.space == "voxel" else log_warning
        log(f"{path}: states {stated} coordinates, which are used instead of {file.space}.")
    points = np.array([[_parse_number(path, row, c) for c in columns] for row in table.rows])
    return points * file.scale, stated or file.space


def convert_to_voxels(
    points: NDArray, space: str, affine: coordinates.Matrix
) -> NDArray[np.float64]:
    """Convert points (N, D) in voxel, ras or lps coordinates to voxels of an image."""
    if space == "voxel":
        return points
    points = coordinates.flip_points(points) if space == "lps" else points
    return coordinates.world_to_voxel(affine, points)


def read_landmarks(file: LandmarkFile, affine: coordinates.Matrix) -> NDArray[np.float32]:
    """Read landmarks in voxels of the image to which they belong.

    Args:
        file: The file, its columns in the order x, y(, z), and the space of its coordinates.
        affine: (4, 4) from voxels of the image to millimetres, RAS+.

    Returns:
        (N, D), with one coordinate for each column.
    """
    return convert_to_voxels(*read_coordinates(file), affine).astype(np.float32)


def find_points_outside(points: NDArray, shape: Iterable[int]) -> NDArray[np.bool_]:
    """Find the points (N, D) that lie outside all voxels of a grid: x < -1/2 or x > n - 1/2."""
    limit = np.array(tuple(shape)) - 0.5
    return np.any((points < -0.5) | (points > limit), axis=1)


def check_landmark_positions(
    file: LandmarkFile,
    points: NDArray,
    image_path: Path,
    shape: Sequence[int],
    affine: coordinates.Matrix,
) -> None:
    """Check that landmarks (N, D) in voxels lie in or near their image.

    Raises:
        UserError: More than half of them are outside, or one is farther outside than the size of
            the image along an axis; the message names the space in which all would be inside.
    """
    outside = find_points_outside(points, shape)
    if not outside.any():
        return
    size = np.array(shape)
    first = int(outside.argmax())
    position = ", ".join(f"{x:.4g}" for x in points[first])
    message = (
        f"{file.path}: {outside.sum()} of {len(points)} landmarks lie outside the image "
        f"{image_path} of shape {tuple(shape)}, the first is number {first + 1} at voxel "
        f"({position})"
    )
    if outside.mean() <= 0.5 and not ((points < -size) | (points > 2 * size)).any():
        log_warning(f"{message}.")
        return
    read, used = read_coordinates(file)
    fitting = [
        space
        for space in SPACES
        if not find_points_outside(convert_to_voxels(read, space, affine), shape).any()
    ]
    hint = f"all are inside with points_space={fitting[0]}" if fitting else "check the columns"
    raise UserError(f"{message}, read in {used} coordinates; {hint}.")


def check_landmark_counts(pair: CasePair, counts: Sequence[int | None]) -> None:
    """Raise a UserError if both cases of a pair have landmarks, but not the same number."""
    first, second = (case.points and case.points.path for case in pair)
    if None not in counts and counts[0] != counts[1]:
        raise UserError(f"{first} has {counts[0]} landmarks, but {second} has {counts[1]}.")
