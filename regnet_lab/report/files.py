"""Files that are either whole or not there."""

import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from regnet_lab.errors import UserError


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 beside ``path``, then rename: a reader never sees half a file.

    Folders on the way are made.

    Raises:
        UserError: The folder cannot be written to, or is full.
    """
    path = Path(path)
    aside = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another folder or make room."
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()
