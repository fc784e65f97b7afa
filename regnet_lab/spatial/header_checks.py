"""What the headers of images promise, held against their files before any memory is taken."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError

LARGEST = 2**33  # voxels
DENSEST = 1032  # bytes that one byte of a deflate stream can become
HEADER = 2**16  # bytes in which a text header ends
UNPACKED = (".nii", ".hdr", ".img", ".mgh")
TEXTED = (".mha", ".mhd", ".nrrd", ".nhdr")  # whose headers are text
PACKED = re.compile(rb"^(?:CompressedData\s*=\s*True|encoding:\s*(?!raw\s*$)\S+)", re.I | re.M)
DETACHED = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.M)


def files_of(path: Path) -> list[Path]:
    """The files that hold an image: itself, the pixels beside its header, a DICOM folder's."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    beside = path
    if path.suffix.lower() in (".hdr", ".img"):
        beside = path.with_suffix({".hdr": ".img", ".img": ".hdr"}[path.suffix.lower()])
    elif path.suffix.lower() in (".mhd", ".nhdr") and path.is_file():
        found = DETACHED.search(path.read_text(errors="replace"))
        beside = path.parent / found[1] if found else path
    return [path, beside] if beside != path and beside.is_file() else [path]


def is_packed(path: Path) -> bool:
    """Whether the voxels may be compressed."""
    if path.suffix.lower() in TEXTED:
        with path.open("rb") as file:
            return bool(PACKED.search(file.read(HEADER)))
    return path.suffix.lower() not in UNPACKED


def check_size(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse an image that its file cannot hold or that no memory can.

    Raises:
        UserError: The header promises too much.
    """
    voxels = int(np.prod(shape, dtype=object))
    stored = sum(file.stat().st_size for file in files_of(path))
    room = stored * (DENSEST if is_packed(path) else 1)
    if not 0 < voxels <= LARGEST or voxels * itemsize > room:
        raise UserError(
            f"{path}: its header promises {' x '.join(map(str, shape))} voxels, which a file of "
            f"{stored} bytes cannot hold; replace it."
        )


def itk_reader(path: Path) -> sitk.ImageFileReader:
    """A reader that knows the header of what SimpleITK reads, which its file can hold.

    Raises:
        UserError: It cannot.
        RuntimeError: It is no image.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    kind = sitk.Image([1, 1], reader.GetPixelID(), components if components > 1 else 0)
    check_size(path, reader.GetSize(), kind.GetSizeOfPixelComponent() * components)
    return reader
