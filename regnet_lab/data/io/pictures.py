"""Pixel size of pictures: PNG, JPEG, TIFF and others without a certain unit of length.

Resolution tags describe printing or a screen.  Only the pixel size of OME-TIFF with its unit is
trusted; other pixels are 1 mm wide.
"""

import logging
import re
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from regnet_lab.errors import UserError
from regnet_lab.utils.logs import log_once

log = logging.getLogger(__name__)

PICTURE_READERS = (  # of ITK
    *("PNGImageIO", "JPEGImageIO", "TIFFImageIO", "BMPImageIO"),
    *("LSMImageIO", "MRCImageIO", "BioRadImageIO"),
)
DESCRIPTION_TAG = 270
UNIT_TO_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "um": 1e-3, "nm": 1e-6}
MICRO_SIGNS = str.maketrans({"\u03bc": "µ"})  # the Greek letter for the micro sign
PIXELS_ELEMENT = re.compile(r"<(?:\w+:)?Pixels\b([^>]*)>")
ATTRIBUTE = re.compile(r"""(\w+)\s*=\s*["']([^"']*)["']""")


def read_ome_attributes(path: Path) -> dict[str, str]:
    """Read the attributes of the first image of an OME-TIFF; an empty result for other files."""
    description = ""
    with path.open("rb") as file, suppress(SyntaxError, struct.error):  # of a damaged TIFF
        start = file.read(8)
        if start[2:4] in (b"\x2b\0", b"\0\x2b"):  # BigTIFF
            start += file.read(8)
        tags = ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        description = str(tags.get(DESCRIPTION_TAG, ""))
    description = description.encode("latin-1", "replace").decode("utf-8", "replace")
    pixels = PIXELS_ELEMENT.search(description) if "<OME" in description else None
    text = pixels[1].replace("&#181;", "µ").replace("&#xB5;", "µ") if pixels else ""
    return dict(ATTRIBUTE.findall(text.translate(MICRO_SIGNS)))


def _get_ome_spacing(attributes: dict[str, str], ndim: int) -> NDArray[np.float64] | None:
    """Return the pixel size in mm along each axis, or None if one is not stated with its unit."""
    sizes = []
    for axis in "XYZ"[:ndim]:
        unit = UNIT_TO_MM.get(attributes.get(f"PhysicalSize{axis}Unit", ""))
        try:
            size = float(attributes[f"PhysicalSize{axis}"])
        except (KeyError, ValueError):
            return None
        if unit is None or not 0 < size < np.inf:
            return None
        sizes.append(size * unit)
    return np.array(sizes)


def read_picture_spacing(path: Path, shape: tuple[int, ...], reader: str) -> NDArray[np.float64]:
    """Return the pixel size in mm along each of the axes (x, y) or (x, y, z) of a picture.

    ``reader`` is the name of ITK's reader for it.

    Raises:
        UserError: The third axis of an OME-TIFF also counts channels or times.
    """
    ndim = len(shape)
    attributes = read_ome_attributes(path) if reader == "TIFFImageIO" else {}
    if ndim == 3 and attributes.get("SizeZ", str(shape[2])) != str(shape[2]):
        raise UserError(
            f"{path}: its {shape[2]} pages are {attributes['SizeZ']} slices in several channels or "
            "times; save one of them as a file of its own."
        )
    spacing = _get_ome_spacing(attributes, ndim)
    if spacing is None:
        log_once(
            log,
            f"{path}: the unit of its pixel size is not certain; pixels are taken as 1 mm wide.",
            logging.INFO,
        )
        return np.ones(ndim)
    return spacing
