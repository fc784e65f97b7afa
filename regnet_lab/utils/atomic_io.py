"""Write files atomically: a file is either complete or unchanged, however the process ends."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from matplotlib.figure import Figure

from regnet_lab.errors import UserError


def sync_to_disk(path: Path, access: int = os.O_RDWR) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_file(temporary: Path, path: Path) -> None:
    """Move a temporary file to its final name, after its content has reached the disk."""
    sync_to_disk(temporary)
    os.replace(temporary, path)
    with suppress(OSError):  # some file systems cannot flush folders
        sync_to_disk(path.parent, os.O_RDONLY)


@contextmanager
def atomic_path(
    path: str | Path, remedy: str = "choose another folder or make room"
) -> Iterator[Path]:
    """Yield a temporary path whose file replaces ``path`` when the block ends without an error.

    Missing folders are created.

    Raises:
        UserError: The folder cannot be written to, or the disk is full; ``remedy`` is its advice.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        commit_file(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): {remedy}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes to ``path`` as :func:`atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write text to ``path`` atomically, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_figure(path: str | Path, figure: Figure, dpi: float = 100) -> None:
    """Write a figure atomically, in the format of the file name's suffix."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.lstrip("."), dpi=dpi)
    write_bytes(path, buffer.getvalue())
