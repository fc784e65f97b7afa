"""Files that are either whole or not there."""

import gzip
import io
from pathlib import Path

from matplotlib.figure import Figure
from numpy.typing import NDArray

from regnet_lab import world
from regnet_lab.durable import written


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


def write_volume(path: str | Path, array: NDArray, affine: world.Matrix) -> None:
    """Write ``.nii.gz`` as :func:`write_bytes` does.

    Args:
        path: The file.
        array: (x, y), (x, y, z) or (x, y, z, channels); integers keep their type.
        affine: (4, 4) to millimetres, RAS+.
    """
    whole = world.to_nifti(array, affine).to_bytes()
    write_bytes(path, gzip.compress(whole, compresslevel=6, mtime=0))


def write_figure(path: str | Path, figure: Figure, dpi: float = 100) -> None:
    """Write a picture, in the format of the name's ending, as :func:`write_bytes` does."""
    whole = io.BytesIO()
    figure.savefig(whole, format=Path(path).suffix.lstrip("."), dpi=dpi)
    write_bytes(path, whole.getvalue())
