"""Cases: the files that belong to one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LandmarkFile:
    """A file of landmarks and the coordinates it uses.

    Args:
        path: Table (separated by commas, blanks or semicolons), MNI ``.tag``, elastix point list or
            ASCII VTK.
        columns: Columns of x, y(, z) in the table, by number from 0 or by name.
        space: ``voxel`` (from 0, along the array axes), ``ras`` or ``lps`` (millimetres).
        scale: Factor applied to the numbers in the file.
    """

    path: Path
    columns: tuple[int | str, ...] = (0, 1, 2)
    space: str = "voxel"
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """One image, or a part of it, with the files that belong to it.

    Args:
        name: Unique in the data set.
        image: NIfTI, NRRD, MHA, MHD, ``.npy``, PNG or JPG, or a DICOM folder.
        labels: Label map on the image's grid.
        mask: Mask on the image's grid, non-zero where the image is valid.
        points: Landmarks, in the same order as those of the other image of a pair.
        phase: Frame of a 4D image (x, y, z, t).
        slice: Slice along the last axis, which makes the case 2D; a float p in [0, 1) selects
            slice int(p N) of N.
    """

    name: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    points: LandmarkFile | None = None
    phase: int | None = None
    slice: int | float | None = None


CasePair = tuple[Case, Case]  # fixed and moving


def make_ordered_pairs(cases: Sequence[Case]) -> list[CasePair]:
    """Return all pairs of two different cases, in both directions."""
    return [(fixed, moving) for fixed in cases for moving in cases if fixed != moving]
