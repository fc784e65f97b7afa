"""List, read, move and pack the files of a submission, a folder or a zip.

A zip is read in place and never unpacked.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import atomic_path

MAX_FILE_BYTES = 2**32  # size limit of a file that is read into memory
DISPLACEMENT_PATTERN = "disp_*"

FileReaders = dict[str, Callable[[], bytes]]  # by path with forward slashes


def is_outside(name: str) -> bool:
    """Return whether a path in an archive leads out of the folder it would be unpacked in."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _read_zip_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}).") from error
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{path}: {name} is far too large.")
    return content


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def list_zip_files(path: Path) -> FileReaders:
    """List the files in a zip.

    Raises:
        UserError: The file is no zip, or has links or paths out of the folder it would be
            unpacked in.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: is no zip and no folder ({error}).") from error
    names = [member.filename for member in members]
    links = [m.filename for m in members if stat.S_ISLNK(m.external_attr >> 16)]
    if unsafe := [*links, *(name for name in names if not name or is_outside(name))]:
        raise UserError(f"{path}: is refused, {unsafe[0]!r} in it leads out of its folder.")
    return {name: partial(_read_zip_member, path, name) for name in names}


def list_files(path: Path) -> FileReaders:
    """List the files of a submission."""
    if not path.exists():
        raise UserError(f"submission={path}: there is no such folder or zip, and it is no year.")
    if not path.is_dir():
        return list_zip_files(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): partial(_read_file, file) for file in files}


def move_displacements(source: Path, folder: Path) -> None:
    """Move displacements into another folder, replacing those in the same subfolders."""
    paths = {p.relative_to(source) for p in source.rglob(DISPLACEMENT_PATTERN) if p.is_file()}
    try:
        for subfolder in {path.parent for path in paths}:
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
            for previous in (folder / subfolder).glob(DISPLACEMENT_PATTERN):
                previous.unlink()
        for path in paths:
            os.replace(source / path, folder / path)
        shutil.rmtree(source)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error


def write_zip(folder: Path, path: Path) -> None:
    """Write the displacements in a folder into a zip, sorted by name."""
    with atomic_path(path) as part, zipfile.ZipFile(part, "x", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob(DISPLACEMENT_PATTERN)):
            archive.write(file, file.relative_to(folder).as_posix())
