"""Checks that a file can hold the image its header describes, before any memory is allocated."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.spatial.meta_image import check_meta_image
from regnet_lab.spatial.voxel_files import (
    MAX_HEADER_BYTES,
    META_IMAGE_SUFFIXES,
    TEXT_HEADER_SUFFIXES,
    check_voxel_files,
    list_voxel_files,
    read_text_header,
    warn_about_unit,
)

MAX_VOXELS = 2**33
MAX_DEFLATE_RATIO = 1032  # most bytes that one byte of a deflate stream can expand to
UNCOMPRESSED_SUFFIXES = (".nii", ".hdr", ".img", ".mgh")
COMPRESSION_FIELD = re.compile(
    rb"^(?:CompressedData\s*=\s*True|encoding:\s*(?!raw\s*$)\S+)", re.IGNORECASE | re.MULTILINE
)


def list_image_files(path: Path) -> list[Path]:
    """List the files of an image: header and separate voxel files, or those of a DICOM folder."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    suffix = path.suffix.lower()
    others: list[Path] = []
    if suffix in (".hdr", ".img"):
        others = [path.with_suffix(".img" if suffix == ".hdr" else ".hdr")]
    elif suffix in TEXT_HEADER_SUFFIXES and path.is_file():
        others = list_voxel_files(path)
    return [path, *(file for file in others if file.is_file())]


def is_compressed(path: Path) -> bool:
    """Check whether the voxels may be compressed."""
    if path.suffix.lower() in TEXT_HEADER_SUFFIXES:
        with path.open("rb") as file:
            return bool(COMPRESSION_FIELD.search(file.read(MAX_HEADER_BYTES)))
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


def check_slice_count(path: Path, slices: int) -> None:
    """Raise UserError if a MetaImage names several voxel files, but not one for each slice."""
    number = len(list_voxel_files(path))
    if number > 1 and number != slices:
        raise UserError(
            f"{path}: names {number} voxel files for {slices} slices; correct its header."
        )


def open_itk_reader(path: Path) -> sitk.ImageFileReader:
    """Open an image with SimpleITK, read its header and check its size and voxel files."""
    if path.suffix.lower() in TEXT_HEADER_SUFFIXES:
        check_voxel_files(path)
        if path.suffix.lower() in META_IMAGE_SUFFIXES:
            size, itemsize = check_meta_image(path, read_text_header(path))
            check_size(path, size, itemsize)
            check_slice_count(path, size[-1])
        warn_about_unit(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    components = reader.GetNumberOfComponents()
    pixel = sitk.Image([1, 1], reader.GetPixelID(), components if components > 1 else 0)
    check_size(path, reader.GetSize(), pixel.GetSizeOfPixelComponent() * components)
    return reader
