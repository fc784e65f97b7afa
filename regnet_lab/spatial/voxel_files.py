"""Text headers of MetaImage and NRRD: the voxel files that they name, and their unit of length.

A header names one file, lists several, or gives a pattern with its range, such as ``z%03d.raw 1 60
1``.  ITK expands the pattern with C's ``printf`` and opens whatever results, so names are checked
before ITK sees them.
"""

import logging
import re
from pathlib import Path, PureWindowsPath

from regnet_lab.errors import UserError
from regnet_lab.utils.logs import log_once

log = logging.getLogger(__name__)

TEXT_HEADER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
META_IMAGE_SUFFIXES = (".mha", ".mhd")
MAX_HEADER_BYTES = 2**20  # a text header, its list of files included, ends within these
MAX_FILES = 2**16
META_IMAGE_FIELD = re.compile(r"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(.*?)[ \t]*$", re.MULTILINE)
NRRD_FIELD = re.compile(r"^data ?file:[ \t]*(.*?)[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
DIMENSION_FIELD = re.compile(r"^[ \t]*NDims[ \t]*[=:][ \t]*(\d+)", re.MULTILINE)
LOCAL_VALUES = ("LOCAL", "Local", "local")
UNIT_FIELD = re.compile(  # DistanceUnits of MetaImage, units and space units of NRRD
    r"^(?:[ \t]*DistanceUnits[ \t]*[=:]|(?:space )?units:)[ \t]*(.*?)[ \t\r]*$",
    re.IGNORECASE | re.MULTILINE,
)
MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "???", "")
LIST_VALUE = re.compile(r"LIST(?:[ \t]+(\d)D?)?")
PATTERN_VALUE = re.compile(r"([^\s%]*)%(0?[1-9]?)d([^\s%]*)\s+(\d+)\s+(\d+)\s+(\d+)(\s+\d)?")


def read_text_header(path: Path) -> str:
    """Read the beginning of a file, which contains its text header."""
    with path.open("rb") as file:
        return file.read(MAX_HEADER_BYTES).decode("utf-8", "surrogateescape")


def _expand_pattern(path: Path, value: str, is_meta_image: bool) -> list[str]:
    """List the file names of a pattern with first number, last number and step."""
    match = PATTERN_VALUE.fullmatch(value)
    if match is None or (is_meta_image and match[7]):
        raise UserError(
            f"{path}: names its voxel files by '{value}'; a pattern must be like 'name%03d.raw 1 "
            "60 1' (first, last, step)."
        )
    start, width, end = match[1], match[2], match[3]
    first, last, step = (int(match[group]) for group in (4, 5, 6))
    if step < 1 or not 0 <= (last - first) // step < MAX_FILES:
        raise UserError(
            f"{path}: names its voxel files by '{value}', whose range is not 1 to {MAX_FILES} "
            "files; correct first, last and step."
        )
    return [f"{start}{number:{width}d}{end}" for number in range(first, last + 1, step)]


def _check_list_dimension(path: Path, value: str, header: str) -> None:
    """Raise UserError if the files that a MetaImage lists do not hold one slice each."""
    files_ndim, ndim = LIST_VALUE.fullmatch(value), DIMENSION_FIELD.search(header)
    if files_ndim and files_ndim[1] and ndim and int(files_ndim[1]) != int(ndim[1]) - 1:
        raise UserError(
            f"{path}: lists voxel files of {files_ndim[1]} axes for an image of {ndim[1]}; "
            f"each must hold {int(ndim[1]) - 1} axes."
        )


def _find_meta_image_field(path: Path, header: str) -> re.Match[str]:
    """Find the field that names the voxel files, which ends the header."""
    match = META_IMAGE_FIELD.search(header)
    if match is None or header.count("ElementDataFile", 0, match.end()) != 1:
        raise UserError(
            f"{path}: does not name its voxels by one ElementDataFile; correct its header."
        )
    if match[1] not in LOCAL_VALUES:
        _check_list_dimension(path, match[1], header)
    return match


def _read_names(path: Path) -> list[str]:
    """Read the names of the voxel files as the header gives them; none if it holds the voxels."""
    header = read_text_header(path)
    is_meta_image = path.suffix.lower() in META_IMAGE_SUFFIXES
    match: re.Match[str] | None
    if is_meta_image:
        header = header.replace("\r", "\n")
        match = _find_meta_image_field(path, header)
    else:
        header = re.split(r"\r?\n\r?\n", header, maxsplit=1)[0]
        match = NRRD_FIELD.search(header)
    if match is None or (is_meta_image and match[1] in LOCAL_VALUES):
        return []
    if LIST_VALUE.fullmatch(match[1]):
        lines = (line.strip() for line in header[match.end() :].splitlines())
        return [name for name in lines if name]
    return _expand_pattern(path, match[1], is_meta_image) if "%" in match[1] else [match[1]]


def _require_below_header(path: Path, name: str) -> None:
    """Raise UserError for a name that leads out of the folder of the header."""
    windows = PureWindowsPath(name)  # also knows the separator /
    if windows.anchor or ".." in windows.parts or "%" in name:
        raise UserError(
            f"{path}: names the voxel file '{name}'; it must be the name of a file in or below the "
            "folder of the header."
        )


def list_voxel_files(path: Path) -> list[Path]:
    """List the separate voxel files of a MetaImage or NRRD header; none if it holds the voxels.

    Raises:
        UserError: A name leads out of the folder of the header, or a pattern is no plain range.
    """
    names = _read_names(path)
    for name in names:
        _require_below_header(path, name)
    return [path.parent / name for name in names]


def check_voxel_files(path: Path) -> None:
    """Raise UserError if a voxel file is missing or its name unsafe."""
    missing = [file for file in list_voxel_files(path) if not file.is_file()]
    if missing:
        raise UserError(
            f"{path}: its voxel file {missing[0].name} is missing ({len(missing)} in all); put it "
            "beside the header."
        )


def warn_about_unit(path: Path) -> None:
    """Log a warning if a header states a unit of length other than mm, which ITK ignores."""
    header = re.split(r"\n\r?\n|ElementDataFile", read_text_header(path), maxsplit=1)[0]
    values = " ".join(UNIT_FIELD.findall(header)).replace('"', " ").split()
    if others := sorted({unit for unit in values if unit.lower() not in MILLIMETRES}):
        log_once(
            log,
            f"{path}: its voxel size is taken as mm, as in ITK, although the header states "
            f"{', '.join(others)}.",
        )
