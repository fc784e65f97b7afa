"""Cases: the files that belong to one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LandmarkFile:
    """A file of landmarks and the coordinates it uses."""

    # table separated by commas, blanks or semicolons, MNI .tag, 3D Slicer markups (.fcsv,
    # .mrk.json), point list of elastix or transformix, or ASCII VTK
    path: Path
    # columns of x, y(, z) in the table, by number from 0 or by name; None: those its header names
    # x, y(, z), otherwise all two or three
    columns: tuple[int | str, ...] | None = None
    # ``voxel`` (from 0, along the array axes), ``ras`` or ``lps`` (millimetres), unless the file
    # states its own
    space: str = "voxel"
    scale: float = 1.0  # factor applied to the numbers in the file


@dataclass(frozen=True)
class Case:
    """One image, or a part of it, with the files that belong to it."""

    name: str  # unique in the data set
    image: Path  # NIfTI, NRRD, MHA, MHD, ``.npy``, PNG or JPG, or a DICOM folder
    labels: Path | None = None  # label map, on any grid in the world of the image
    mask: Path | None = None  # mask, likewise; non-zero where the image is valid
    # landmarks, in the same order as those of the other image of a pair
    points: LandmarkFile | None = None
    phase: int | None = None  # frame of a 4D image (x, y, z, t)
    # along the last axis, which makes the case 2D; a float p in [0, 1) selects slice int(p N) of N
    slice: int | float | None = None


CasePair = tuple[Case, Case]  # fixed and moving


def make_ordered_pairs(cases: Sequence[Case]) -> list[CasePair]:
    """Return all pairs of two different cases, in both directions."""
    return [(fixed, moving) for fixed in cases for moving in cases if fixed != moving]
