"""Checks of input files."""

from pathlib import Path

from regnet_lab.errors import UserError


def require_file(path: Path, folder_allowed: bool = False) -> None:
    """Raise a UserError unless a path is a regular file, or a folder where that is allowed.

    Reading a pipe or a device could wait forever.
    """
    if path.is_file() or (folder_allowed and path.is_dir()):
        return
    if not path.exists():
        raise UserError(f"{path}: this file is missing.")
    raise UserError(f"{path}: is a folder, a pipe or a device; give a file.")
