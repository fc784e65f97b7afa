"""The files of a submission: a folder, or a zip that is read where it is and never unpacked."""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import written

LARGEST = 2**32  # bytes of a file that is read into memory

FILES = "disp_*"  # what the files of a submission are called
Files = dict[str, Callable[[], bytes]]  # what reads each file, by its path with forward slashes


def outside(name: str) -> bool:
    """Whether a path in an archive leads out of the folder in which it is unpacked."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def _of_zip(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            content = file.read(LARGEST + 1)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path}: {name} cannot be read ({error}).") from error
    if len(content) > LARGEST:
        raise UserError(f"{path}: {name} is far too large.")
    return content


def _of_folder(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def zip_files(path: Path) -> Files:
    """The files in a zip.

    Raises:
        UserError: It is no zip, or one that leads outside the folder it would be unpacked in.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: is no zip and no folder ({error}).") from error
    names = [member.filename for member in members]
    links = [m.filename for m in members if stat.S_ISLNK(m.external_attr >> 16)]
    if unsafe := [*links, *(name for name in names if not name or outside(name))]:
        raise UserError(f"{path}: is refused, {unsafe[0]!r} in it leads out of its folder.")
    return {name: lambda name=name: _of_zip(path, name) for name in names}  # type: ignore[misc]


def files(path: Path) -> Files:
    """The files of a submission.

    Raises:
        UserError: There is no such folder or zip.
    """
    if not path.exists():
        raise UserError(f"submission={path}: there is no such folder or zip, and it is no year.")
    if not path.is_dir():
        return zip_files(path)
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): lambda file=file: _of_folder(file)  # type: ignore[misc]
        for file in found
    }


def moved(source: Path, folder: Path) -> None:
    """Put the files of a folder into another, in whose subfolders of the same name they then are
    the only ones of a submission.

    Raises:
        UserError: The other folder cannot be written to.
    """
    new = {file.relative_to(source) for file in source.rglob(FILES) if file.is_file()}
    try:
        for part in {file.parent for file in new}:
            (folder / part).mkdir(parents=True, exist_ok=True)
            for old in (folder / part).glob(FILES):
                old.unlink()
        for file in new:
            os.replace(source / file, folder / file)
        shutil.rmtree(source)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error


def pack(folder: Path, path: Path) -> None:
    """Write the displacements in a folder into a zip, in the order of their names.

    Raises:
        UserError: It cannot be written.
    """
    with written(path) as aside, zipfile.ZipFile(aside, "x", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob(FILES)):
            archive.write(file, file.relative_to(folder).as_posix())
