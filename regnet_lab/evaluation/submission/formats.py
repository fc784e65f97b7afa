"""Define the submission formats of the Learn2Reg challenges: names, shapes, files.

A displacement is (3, X, Y, Z), float32, on the grid of the original fixed image and in its voxels.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.serialization import CODECS, READ_ERRORS

Shape = tuple[int, ...]
Field = NDArray[np.float32]
ImageId = tuple[int, int]  # patient and modality

FILE_NAME_STYLES = ("auto", "short", "long", "both")


@dataclass(frozen=True, eq=False)
class ChallengeTask:
    """A data set of the challenges.

    If it ``is_padded``, images may be smaller than ``shape``, in whose centre they then lie; their
    displacements are never halved.
    """

    title: str  # in messages
    pattern: str  # of the names of its cases; groups: patient and modality (0 where there is none)
    shape: Shape | None = None  # of its images; None: that in the image files
    folders: Mapping[int, str] = field(default_factory=dict)  # of its files, by year
    is_padded: bool = False


CHALLENGE_TASKS = (
    ChallengeTask("EASY-RESECT", r"Case(\d+)-.+", (256, 256, 288), {2020: "task_01"}),
    ChallengeTask("lung CT", r"case_(\d+)_(?:exp|insp)", (192, 192, 208), {2020: "task_02"}),
    ChallengeTask("abdomen CT", r"img(\d+)", (192, 160, 256), {2020: "task_03"}),
    ChallengeTask(
        "hippocampus", r"hippocampus_(\d+)", (64, 64, 64), {2020: "task_04"}, is_padded=True
    ),
    ChallengeTask("AbdomenMRCT", r"AbdomenMRCT_(\d+)_(\d+)", None, {2021: "task_01"}),
    ChallengeTask("LungCT", r"LungCT_(\d+)_(\d+)", None, {2021: "task_02"}),
    ChallengeTask("OASIS", r"OASIS_(\d+)_(\d+)", None, {2021: "task_03"}),
    ChallengeTask("this data set", r".+_(\d+)_(\d+)"),
)


def identify_task(name: str) -> tuple[ChallengeTask, ImageId]:
    """Identify the task of a case, its patient and its modality by the name of the case."""
    for task in CHALLENGE_TASKS:
        if match := re.fullmatch(task.pattern, name):
            patient, *modality = map(int, match.groups())
            return task, (patient, modality[0] if modality else 0)
    raise UserError(
        f"{name} is no case of Learn2Reg: a submission needs data=task01, task02, task03, task04, "
        "tasks234 or learn2reg."
    )


def make_file_stems(fixed: ImageId, moving: ImageId, style: str = "short") -> list[str]:
    """Return the names of the file of a pair, without suffix.

    The style is ``short`` (disp_0001_0002), ``long`` (disp_0001_0000_0002_0000, patient and
    modality of each), ``both``, or ``auto``: short for modalities that are equal or 0 and 1, as the
    servers of the challenges expect, and long for others.

    >>> make_file_stems((1, 0), (2, 2), "auto")
    ['disp_0001_0000_0002_0002']
    """
    if style not in FILE_NAME_STYLES:
        raise UserError(
            f"file_names={style} is unknown; choose from {', '.join(FILE_NAME_STYLES)}."
        )
    short = f"disp_{fixed[0]:04d}_{moving[0]:04d}"
    long = "disp_" + "_".join(f"{number:04d}" for number in (*fixed, *moving))
    is_short = fixed[1] == moving[1] or (fixed[1], moving[1]) == (0, 1)
    stems = {"short": [short], "long": [long], "both": [short, long]}
    return stems.get(style, [short] if is_short else [long])


def _zoom(u: Field, factor: float) -> Field:
    """Resample each component as the evaluator does; values stay in full-resolution voxels."""
    return np.stack([zoom(component, factor, order=2) for component in u])


@dataclass(frozen=True)
class SubmissionFormat:
    """Format of the displacements of a challenge.

    If it ``is_half``, arrays are float16 at half resolution, and every task has a folder in which
    all names are short; else they are float32, and there is one task, without a folder.
    """

    year: int  # the first one of the format
    suffixes: tuple[str, ...]  # of its files; the first is written
    is_half: bool

    def compute_shape(self, task: ChallengeTask, shape: Shape) -> Shape:
        """Return the shape of the array for images of ``shape``."""
        if not self.is_half:
            return (*shape, 3)
        if task.is_padded:
            return (3, *shape)
        if any(n % 2 for n in shape):
            size = " x ".join(map(str, shape))
            raise UserError(f"images of {size} voxels have no half resolution.")
        return (3, *(n // 2 for n in shape))

    def pack(self, task: ChallengeTask, u: Field) -> NDArray:
        """Convert a displacement to the array that is stored."""
        if not self.is_half:
            return np.moveaxis(u, 0, -1).astype(np.float32)
        with np.errstate(over="ignore"):
            return (u if task.is_padded else _zoom(u, 0.5)).astype(np.float16)

    def unpack(self, task: ChallengeTask, array: NDArray) -> Field:
        """Convert a stored array to a displacement, as the evaluator does."""
        if not self.is_half:
            return np.moveaxis(array, -1, 0).astype(np.float32)
        u = array.astype(np.float32)
        return u if task.is_padded else _zoom(u, 2)

    def get_folder_prefix(self, task: ChallengeTask) -> str:
        """Return what precedes the name of a file: ``task_04/``, or nothing."""
        if not self.is_half:
            return ""
        if self.year not in task.folders:
            raise UserError(
                f"submission={self.year}: {task.title} was no task of that year; give another year."
            )
        return f"{task.folders[self.year]}/"

    def encode(self, task: ChallengeTask, u: Field) -> bytes:
        """Encode a displacement as the content of a file."""
        array = self.pack(task, u)
        if not np.isfinite(array).all():
            raise UserError("the displacement is NaN, infinite or beyond its number format.")
        return CODECS[self.suffixes[0]][0](array)

    def decode(self, task: ChallengeTask, shape: Shape, file: str, content: bytes) -> Field:
        """Decode and check the displacement in a file, for images of ``shape``."""
        expected = self.compute_shape(task, shape)
        decode = next(decode for suffix, (_, decode) in CODECS.items() if file.endswith(suffix))
        try:
            array = decode(content, 8 * prod(expected) + 2**16)
        except READ_ERRORS as error:
            raise UserError(f"{file}: cannot be read ({error}).") from error
        if array.dtype.kind not in "iuf" or (self.is_half and array.dtype != np.float16):
            kind = "float16" if self.is_half else "numbers"
            raise UserError(f"{file}: is {array.dtype}, but must be {kind}.")
        if array.shape != expected:
            raise UserError(f"{file}: has shape {array.shape}, but must have {expected}.")
        if num_invalid := int(array.size - np.isfinite(array).sum()):
            raise UserError(f"{file}: {num_invalid} numbers are NaN or infinite.")
        return self.unpack(task, array)


FORMATS = (
    SubmissionFormat(2020, (".npz",), is_half=True),
    SubmissionFormat(2021, (".npz",), is_half=True),
    SubmissionFormat(2022, (".nii.gz", ".npz"), is_half=False),
)


def find_format(year: int) -> SubmissionFormat:
    """Return the format of the challenge of a year."""
    formats = [form for form in FORMATS if form.year <= year]
    if not formats:
        raise UserError(f"submission={year}: the first challenge was that of {FORMATS[0].year}.")
    return formats[-1]
