"""From lists of files to pairs: a layout lists cases, a preparation reads them, this joins both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from regnet_lab.types import Pair


@dataclass(frozen=True)
class Points:
    """Where a case's landmarks are written and in which coordinates.

    Args:
        path: A table (CSV, blanks, semicolons), MNI ``.tag``, elastix list or ASCII VTK.
        columns: Of x, y(, z) in the table, by number from 0 or by name.
        space: ``voxel`` (from 0, along the array's axes), ``ras`` or ``lps`` (millimetres).
        scale: Factor on the numbers in the file.
    """

    path: Path
    columns: tuple[int | str, ...] = (0, 1, 2)
    space: str = "voxel"
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """The files of one image and the part of it that is meant.

    Args:
        name: Unique in the data set.
        image: NIfTI, NRRD, MHA, MHD, ``.npy``, PNG or JPG, or a DICOM folder.
        labels: Label map on the image's grid.
        mask: Where the image counts, on its grid.
        points: Landmarks, in the order of the partner's.
        phase: Frame of a 4D image (x, y, z, t).
        slice: Slice along the last axis, which makes the case 2D; a float in [0, 1) is its
            relative position, slice int(p N) of N.
    """

    name: str
    image: Path
    labels: Path | None = None
    mask: Path | None = None
    points: Points | None = None
    phase: int | None = None
    slice: int | float | None = None


class CasePairs(Dataset[Pair]):
    """Pairs of cases, each made by ``prepare(fixed, moving)`` when it is asked for."""

    def __init__(
        self, pairs: Sequence[tuple[Case, Case]], prepare: Callable[[Case, Case], Pair]
    ) -> None:
        self.pairs, self.prepare = pairs, prepare

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.prepare(*self.pairs[index])


def ordered_pairs(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Every case with every other one, both ways round."""
    return [(fixed, moving) for fixed in cases for moving in cases if fixed != moving]
