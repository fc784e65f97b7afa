"""Files that are whole or not there, whatever ends the process that writes them."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from matplotlib.figure import Figure

from regnet_lab.errors import UserError


def flush(path: Path, access: int = os.O_RDWR) -> None:
    """Return when the disk has what was written."""
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(aside: Path, path: Path) -> None:
    """Give a written file its name: first its bytes reach the disk, then its name."""
    flush(aside)
    os.replace(aside, path)
    with suppress(OSError):  # a file system that cannot flush folders
        flush(path.parent, os.O_RDONLY)


@contextmanager
def written(path: str | Path, remedy: str = "choose another folder or make room") -> Iterator[Path]:
    """Where to write so that ``path`` is in the end whole, or as it was before.

    Folders on the way are made.

    Args:
        path: The file.
        remedy: What the user can do where it cannot be written.

    Raises:
        UserError: The folder cannot be written to, or is full.
    """
    path = Path(path)
    aside = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        settle(aside, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path} cannot be written ({reason}): {remedy}.") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` beside ``path``, then rename: a reader never sees half a file.

    Folders on the way are made.

    Raises:
        UserError: The folder cannot be written to, or is full.
    """
    with written(path) as aside:
        aside.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_figure(path: str | Path, figure: Figure, dpi: float = 100) -> None:
    """Write a picture, in the format of the name's ending, as :func:`write_bytes` does."""
    whole = io.BytesIO()
    figure.savefig(whole, format=Path(path).suffix.lstrip("."), dpi=dpi)
    write_bytes(path, whole.getvalue())
