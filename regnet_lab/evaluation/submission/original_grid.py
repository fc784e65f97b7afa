"""The pairs of a challenge on the grid on which it is judged: the published fixed image's own.

A model may see a pair cropped, padded or at another spacing; what it answers is carried from that
grid to the published one through the affine map that the preparation knows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import noted
from regnet_lab.data.io.images import UNREADABLE
from regnet_lab.data.preprocessing.functional import Matrix, continued, whole_shift
from regnet_lab.data.preprocessing.grids import CentredGrid, Grid
from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.formats import Field, Image, Shape, Task, identify
from regnet_lab.types import Pair

SHOWN = 8  # faults told in full


def carried(
    u: NDArray, prepared: tuple[Matrix, Matrix], wanted: tuple[Matrix, Matrix], shape: Shape
) -> Field:
    """A displacement on another pair of grids.

    With F, M the matrices from the wanted voxels to the images', f, m those from the prepared ones,
    y goes to M^-1 m (x + u(x)) where x = f^-1 F y: linear between the voxels of u and constant
    beyond them, exact where the grids differ by whole voxels.

    Args:
        u: (D, *prepared grid), in its voxels.
        prepared: From its voxels to those of the fixed and of the moving image, (D+1, D+1).
        wanted: The same for the grids on which the answer lies and into which it leads.
        shape: Of the wanted fixed grid.

    Returns:
        (D, *shape), in voxels of the wanted moving grid.
    """
    into = np.linalg.inv(prepared[0]) @ wanted[0]
    back = np.linalg.inv(wanted[1]) @ prepared[1]
    still = back @ into - np.eye(len(back))
    y = np.indices(shape).reshape(len(shape), -1)
    turned = back[:-1, :-1] @ sampled(u, into, shape).reshape(len(u), -1)
    moved = turned + still[:-1, :-1] @ y + still[:-1, -1:]
    return moved.reshape(len(u), *shape).astype(np.float32)


def sampled(u: NDArray, into: Matrix, shape: Shape) -> NDArray[np.float32]:
    """Each component of u at the places that ``into`` gives to the voxels of a grid."""
    offset = whole_shift(into)
    if offset is not None:
        return np.stack([continued(component, offset, shape) for component in u])
    points = into[:-1, :-1] @ np.indices(shape).reshape(len(u), -1) + into[:-1, -1:]
    at = torch.from_numpy(points.reshape(1, len(u), *shape)).float()
    return ops.sample(torch.from_numpy(u)[None], at)[0].numpy()


def stored_shape(path: Any) -> Shape:
    """Shape in the header of an image.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return nibabel.load(path).shape  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as an image; replace it.") from error


@dataclass(frozen=True)
class Entry:
    """A pair of a challenge.

    Args:
        task: The data set it belongs to.
        images: Patient and modality of the fixed and of the moving image.
        cases: Their files.
        prepare: Makes the pair that a model sees.
    """

    task: Task
    images: tuple[Image, Image]
    cases: tuple[Case, Case]
    prepare: Grid

    @cached_property
    def shape(self) -> Shape:
        """Of the published images.

        Raises:
            UserError: The files are not as published, or differ in shape.
        """
        wanted = self.task.shape or stored_shape(self.cases[0].image)
        for case in self.cases:
            found = stored_shape(case.image)
            small = len(found) == len(wanted) and all(np.less_equal(found, wanted))
            if found != wanted and not (self.task.cut_out and small):
                raise UserError(f"{case.image}: has shape {found}, but {wanted} is published.")
        return wanted

    @cached_property
    def grid(self) -> CentredGrid:
        """Prepares the pair as published, with the intensities and labels a model sees."""
        prepare = self.prepare
        return CentredGrid(
            self.shape,
            intensity=prepare.intensity,
            labels=prepare.labels,
            shared_range=prepare.shared_range,
            cache=None,
        )

    def published(self) -> Pair:
        """The pair on the published grid, labels and landmarks as they are."""
        return self.grid(*self.cases)

    def carried(self, u: NDArray) -> Field:
        """The answer of a model to the prepared pair, on the published grid."""
        fixed, moving = (self.prepare.scan(case) for case in self.cases)
        prepared, wanted = (
            (grid.place(fixed, fixed)[1], grid.place(moving, fixed)[1])
            for grid in (self.prepare, self.grid)
        )
        return carried(u, prepared, wanted, self.shape)


def entry(fixed: Case, moving: Case, prepare: Grid) -> Entry:
    """A pair as one of a challenge.

    Raises:
        UserError: It is none.
    """
    (task, first), (other, second) = identify(fixed.name), identify(moving.name)
    if task != other:
        raise UserError(f"{fixed.name} and {moving.name} belong to two tasks of Learn2Reg.")
    return Entry(task, (first, second), (fixed, moving), prepare)


def entries(dataset: Any) -> dict[str, Entry]:
    """The pairs of a data set, or of a mixture of some, by the name a pair has in it.

    Raises:
        UserError: It has pairs that belong to no challenge.
    """
    dataset = getattr(dataset, "watched", dataset)
    if hasattr(dataset, "parts"):
        parts = {name: entries(part) for name, part in dataset.parts.items()}
        return {f"{name}_{pair}": e for name, part in parts.items() for pair, e in part.items()}
    if not isinstance(getattr(dataset, "pairs", None), list):
        raise UserError("These data are made in memory: a submission needs those of a challenge.")
    return {f"{f.name}_{m.name}": entry(f, m, dataset.prepare) for f, m in dataset.pairs}


def check(what: str, listed: Iterable[Entry], look: Callable[[Entry], object]) -> None:
    """Look at every entry.

    Raises:
        UserError: One for all that looking at them raised, each fault once.
    """
    found: list[str] = []
    for one in listed:
        with noted(found):
            look(one)
    faults = list(dict.fromkeys(fault.rstrip(".") for fault in found))
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if faults[SHOWN:] else ""
        raise UserError(f"{what}: {'; '.join(faults[:SHOWN])}{more}.")


class PublishedPairs(Dataset[Pair]):
    """The pairs of a data set on the grids on which a challenge judges them."""

    def __init__(self, dataset: Any) -> None:
        self.entries = entries(dataset)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Pair:
        name = list(self.entries)[index]
        return Pair(**{**self.entries[name].published(), "name": name})  # type: ignore[typeddict-item]
