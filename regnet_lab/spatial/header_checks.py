"""Checks that a file can hold the image its header describes, before any memory is allocated."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError

MAX_VOXELS = 2**33
MAX_DEFLATE_RATIO = 1032  # most bytes that one byte of a deflate stream can expand to
TEXT_HEADER_BYTES = 2**16  # a text header ends within these
UNCOMPRESSED_SUFFIXES = (".nii", ".hdr", ".img", ".mgh")
TEXT_HEADER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
COMPRESSION_FIELD = re.compile(
    rb"^(?:CompressedData\s*=\s*True|encoding:\s*(?!raw\s*$)\S+)", re.IGNORECASE | re.MULTILINE
)
DATA_FILE_FIELD = re.compile(
    r"^(?:ElementDataFile\s*=|data ?file:)\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE
)


def list_image_files(path: Path) -> list[Path]:
    """List the files of an image: header and separate voxel file, or those of a DICOM folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    partner, suffix = path, path.suffix.lower()
    if suffix in (".hdr", ".img"):
        partner = path.with_suffix(".img" if suffix == ".hdr" else ".hdr")
    elif suffix in (".mhd", ".nhdr") and path.is_file():
        data_file = DATA_FILE_FIELD.search(path.read_text(errors="replace"))
        partner = path.parent / data_file[1] if data_file else path
    return [path, partner] if partner != path and partner.is_file() else [path]


def is_compressed(path: Path) -> bool:
    """Check whether the voxels may be compressed."""
    if path.suffix.lower() in TEXT_HEADER_SUFFIXES:
        with path.open("rb") as file:
            return bool(COMPRESSION_FIELD.search(file.read(TEXT_HEADER_BYTES)))
    return path.suffix.lower() not in UNCOMPRESSED_SUFFIXES


def check_size(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise UserError if an image is too large, or its file or DICOM folder too small for it.

    ``shape`` and ``itemsize``, the bytes per voxel, are those of the header.
    """
    voxels = int(np.prod(shape, dtype=object))
    stored = sum(file.stat().st_size for file in list_image_files(path))
    capacity = stored * (MAX_DEFLATE_RATIO if is_compressed(path) else 1)
    if not 0 < voxels <= MAX_VOXELS or voxels * itemsize > capacity:
        raise UserError(
            f"{path}: its header promises {' x '.join(map(str, shape))} voxels, which a file of "
            f"{stored} bytes cannot hold; replace it."
        )


def open_itk_reader(path: Path) -> sitk.ImageFileReader:
    """Open an image with SimpleITK, read its header and check its size."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    pixel = sitk.Image([1, 1], reader.GetPixelID(), components if components > 1 else 0)
    check_size(path, reader.GetSize(), pixel.GetSizeOfPixelComponent() * components)
    return reader
