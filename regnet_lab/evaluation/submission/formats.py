"""The forms in which the Learn2Reg challenges take displacements: names, shapes, files.

A displacement is (3, X, Y, Z), float32, on the grid of the published fixed image and in its voxels.

========  =========  =================================================================  ==========
year      array      stored                                                             file
========  =========  =================================================================  ==========
2020, 21  float16    (3, X/2, Y/2, Z/2), values still in full-resolution voxels;        ``.npz``
                     the hippocampus whole, (3, 64, 64, 64)
2022 on   float32    (X, Y, Z, 3)                                                       ``.nii.gz``
========  =========  =================================================================  ==========

References:
    learn2reg.grand-challenge.org and the published evaluators of 2020 and since 2022; halves are
    ``scipy.ndimage.zoom`` of order 2, written with 0.5 and read with 2.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.ndimage import zoom

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.serialization import DAMAGED, FILES

Shape = tuple[int, ...]
Field = NDArray[np.float32]
Image = tuple[int, int]  # patient and modality

NAMES = ("auto", "short", "long", "both")


@dataclass(frozen=True, eq=False)
class Task:
    """A data set of the challenges.

    Args:
        title: What people call it.
        pattern: Of its cases' names; the first group is the patient, the second the modality (0
            where there is none).
        shape: Of its images; none: as its ``dataset.json`` says.
        folders: In which its files lie, for the years which want one.
        cut_out: Its images may be smaller than ``shape``, in whose middle they then lie, and their
            displacements are never halved.
    """

    title: str
    pattern: str
    shape: Shape | None = None
    folders: Mapping[int, str] = field(default_factory=dict)
    cut_out: bool = False


TASKS = (
    Task("EASY-RESECT", r"Case(\d+)-.+", (256, 256, 288), {2020: "task_01"}),
    Task("lung CT", r"case_(\d+)_(?:exp|insp)", (192, 192, 208), {2020: "task_02"}),
    Task("abdomen CT", r"img(\d+)", (192, 160, 256), {2020: "task_03"}),
    Task("hippocampus", r"hippocampus_(\d+)", (64, 64, 64), {2020: "task_04"}, cut_out=True),
    Task("AbdomenMRCT", r"AbdomenMRCT_(\d+)_(\d+)", None, {2021: "task_01"}),
    Task("LungCT", r"LungCT_(\d+)_(\d+)", None, {2021: "task_02"}),
    Task("OASIS", r"OASIS_(\d+)_(\d+)", None, {2021: "task_03"}),
    Task("this data set", r".+_(\d+)_(\d+)"),
)


def identify(name: str) -> tuple[Task, Image]:
    """The task that a case belongs to, its patient and its modality.

    Raises:
        UserError: No case of Learn2Reg is named so.
    """
    for task in TASKS:
        if match := re.fullmatch(task.pattern, name):
            patient, *modality = map(int, match.groups())
            return task, (patient, *(modality or [0]))  # type: ignore[return-value]
    raise UserError(
        f"{name} is no case of Learn2Reg: a submission needs data=task01, task02, task03, task04, "
        "tasks234 or l2r."
    )


def stems(fixed: Image, moving: Image, names: str = "short") -> list[str]:
    """What the file of a pair is called, without its ending.

    Args:
        fixed: Patient and modality.
        moving: The same.
        names: ``short`` (disp_0001_0002), ``long`` (disp_0001_0000_0002_0000, patient and modality
            of each), ``both``, or ``auto``: short for modalities that are equal or 0 and 1, as the
            challenges' servers want it, and long for others.

    Raises:
        UserError: ``names`` is something else.
    """
    if names not in NAMES:
        raise UserError(f"names={names} is unknown; choose from {', '.join(NAMES)}.")
    short = f"disp_{fixed[0]:04d}_{moving[0]:04d}"
    long = "disp_" + "_".join(f"{number:04d}" for number in (*fixed, *moving))
    plain = fixed[1] == moving[1] or (fixed[1], moving[1]) == (0, 1)
    return {"short": [short], "long": [long], "both": [short, long]}.get(
        names, [short] if plain else [long]
    )


def halved(u: Field) -> Field:
    """Every other sample of each component: (3, X/2, Y/2, Z/2), values as they are."""
    return np.stack([zoom(component, 0.5, order=2) for component in u])


def doubled(array: NDArray) -> Field:
    """What the evaluator makes of :func:`halved`: (3, X, Y, Z)."""
    return np.stack([zoom(component, 2, order=2) for component in array.astype(np.float32)])


def half_shape(task: Task, shape: Shape) -> Shape:
    """Shape of the array that 2020 and 2021 want for images of ``shape``.

    Raises:
        UserError: It is to be halved, but is odd.
    """
    if not task.cut_out and any(n % 2 for n in shape):
        raise UserError(f"images of {' x '.join(map(str, shape))} voxels have no half resolution.")
    return (3, *shape) if task.cut_out else (3, *(n // 2 for n in shape))


def pack_half(task: Task, u: Field) -> NDArray[np.float16]:
    """The array that 2020 and 2021 want."""
    with np.errstate(over="ignore"):
        return (u if task.cut_out else halved(u)).astype(np.float16)


def unpack_half(task: Task, array: NDArray) -> Field:
    """What the evaluator makes of it."""
    return array.astype(np.float32) if task.cut_out else doubled(array)


def full_shape(task: Task, shape: Shape) -> Shape:
    """Shape of the array that the challenges want since 2022."""
    return (*shape, 3)


def pack_full(task: Task, u: Field) -> NDArray[np.float32]:
    """The array that the challenges want since 2022."""
    return np.moveaxis(u, 0, -1).astype(np.float32)


def unpack_full(task: Task, array: NDArray) -> Field:
    """The displacement in it."""
    return np.moveaxis(array, -1, 0).astype(np.float32)


@dataclass(frozen=True)
class Format:
    """How the challenge of one year takes displacements.

    Args:
        year: The first that takes them so.
        endings: Of its files; the first is written.
        dtype: Of its arrays; none: any numbers.
        shape: Of the array, from the task and the shape of its images.
        pack: Makes the array of a displacement.
        unpack: Makes the displacement of an array.
        foldered: Whether every task has a folder in which all names are short; else there is one
            task, without a folder.
    """

    year: int
    endings: tuple[str, ...]
    dtype: DTypeLike | None
    shape: Callable[[Task, Shape], Shape]
    pack: Callable[[Task, Field], NDArray]
    unpack: Callable[[Task, NDArray], Field]
    foldered: bool

    def folder(self, task: Task) -> str:
        """What comes before a file's name: ``task_04/``, or nothing.

        Raises:
            UserError: The task was none of that year.
        """
        if self.foldered and self.year not in task.folders:
            raise UserError(
                f"submission={self.year}: {task.title} was no task of that year; give another year."
            )
        return f"{task.folders[self.year]}/" if self.foldered else ""

    def encode(self, task: Task, u: Field) -> bytes:
        """The file of a displacement.

        Raises:
            UserError: A number is not finite, or too large for float16.
        """
        array = self.pack(task, u)
        if not np.isfinite(array).all():
            raise UserError("the displacement is NaN, infinite or beyond its number format.")
        return FILES[self.endings[0]][0](array)

    def decode(self, task: Task, shape: Shape, file: str, content: bytes) -> Field:
        """The displacement in a file, for images of ``shape``.

        Raises:
            UserError: It is damaged, or not of the type, the shape or the values it must have.
        """
        wanted = self.shape(task, shape)
        read = next(read for ending, (_, read) in FILES.items() if file.endswith(ending))
        try:
            array = read(content, 8 * prod(wanted) + 2**16)
        except DAMAGED as error:
            raise UserError(f"{file}: cannot be read ({error}).") from error
        if array.dtype.kind not in "iuf" or self.dtype not in (None, array.dtype):
            raise UserError(f"{file}: is {array.dtype}, but must be {self.dtype or 'numbers'}.")
        if array.shape != wanted:
            raise UserError(f"{file}: has shape {array.shape}, but must have {wanted}.")
        if broken := int(array.size - np.isfinite(array).sum()):
            raise UserError(f"{file}: {broken} numbers are NaN or infinite.")
        return self.unpack(task, array)


FORMATS = (
    Format(2020, (".npz",), np.dtype(np.float16), half_shape, pack_half, unpack_half, True),
    Format(2021, (".npz",), np.dtype(np.float16), half_shape, pack_half, unpack_half, True),
    Format(2022, (".nii.gz", ".npz"), None, full_shape, pack_full, unpack_full, False),
)


def format_of(year: int) -> Format:
    """The format in which a year's challenge takes displacements.

    Raises:
        UserError: There was no challenge in that year.
    """
    known = [form for form in FORMATS if form.year <= year]
    if not known:
        raise UserError(f"submission={year}: the first challenge was that of {FORMATS[0].year}.")
    return known[-1]
