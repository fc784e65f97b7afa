"""The grid on which a model works on a user's images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray

from regnet_lab.data.io.cases import Scan
from regnet_lab.data.preprocessing.functional import centred_grid
from regnet_lab.data.preprocessing.grids import factors
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame

THICK = 2.0  # times as long as the finest: a spacing at which slices are better not resampled
STRAIGHT = 0.01  # cosine between array and world axes below which they run the same way


def nearest_ras(frame: Frame) -> Frame:
    """The same voxels with array axes turned and flipped to run most nearly right, front, top."""
    turn = nibabel.io_orientation(frame.affine)
    affine = frame.affine @ nibabel.orientations.inv_ornt_aff(turn, frame.shape)
    return Frame(tuple(frame.shape[axis] for axis in np.argsort(turn[:, 0])), affine)


def is_oblique(frame: Frame) -> bool:
    """Whether a frame nearest RAS runs askew through the world, and has no thick slices."""
    own = coordinates.spacing(frame.affine)
    cosines = frame.affine[:3, :3] / own - np.eye(3)
    return bool(own.max() < THICK * own.min() and np.abs(cosines).max() > STRAIGHT)


def upright(frame: Frame, known: NDArray[np.bool_]) -> Frame:
    """The smallest box along the world's axes that holds the known voxels of a 3D frame, in
    voxels as long as its finest.
    """
    lines = known.any(2)
    ends = known.argmax(2), known.shape[2] - 1 - known[..., ::-1].argmax(2)
    voxels = [np.column_stack([*np.nonzero(lines), end[lines]]) for end in ends]
    places = coordinates.transform(frame.affine, np.concatenate(voxels))
    spacing = coordinates.spacing(frame.affine).min()
    low, high = places.min(0), places.max(0)
    shape = np.rint((high - low) / spacing).astype(int) + 1
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high - (shape - 1) * spacing) / 2
    return Frame(tuple(shape.tolist()), affine)


@dataclass(frozen=True)
class ModelGrid:
    """Where the grid on which a model works lies, about the middle of the fixed image.

    Args:
        shape: Its voxels along the first axes; it grows to cover the image; null: just that.
        spacing: Millimetres per voxel, one number or one for each of the first axes; null: the
            fixed image's own.
        axes: Of 3D images.  ``world``: to the right, front and top of the world, whatever the
            fixed image's own, over what was seen of it, so that a model is shown the same
            anatomy however it is stored; images with slices more than twice as thick as their
            voxels are wide are turned as by ``ras``: array axes are turned and flipped to run
            most nearly to the right, front and top.  ``image``: as they are.
        largest: Voxels at most, by a coarser spacing, where none is given.
    """

    shape: Sequence[int] | None = None
    spacing: float | Sequence[float] | None = None
    axes: str = "ras"
    largest: int | None = None

    def place(self, fixed: Scan, known: NDArray[np.bool_] | None = None) -> Frame:
        """The grid for a fixed image, of which all or the ``known`` voxels are no padding.

        Raises:
            UserError: ``axes`` or ``spacing`` is none.
        """
        if self.axes not in ("world", "ras", "image"):
            raise UserError(f"grid.axes={self.axes} must be world, ras or image.")
        own = Frame(fixed.image.shape, fixed.affine)
        if self.axes != "image" and own.ndim == 3:
            turned = nearest_ras(own)
            if self.axes == "world" and is_oblique(turned):
                turned = upright(own, np.ones(own.shape, bool) if known is None else known)
            own = turned
        return self._about(own)

    def _about(self, own: Frame) -> Frame:
        spacing, extent = coordinates.spacing(own.affine, own.ndim), own.shape
        ratio = factors(self._spacing(spacing, extent), spacing)
        covering, _ = centred_grid(extent, ratio)
        given = [*(self.shape or ()), *covering[len(self.shape or ()) :]]
        shape, matrix = centred_grid(extent, ratio, np.maximum(given, covering).tolist())
        return Frame(shape, own.affine @ coordinates.embedded(matrix))

    def _spacing(self, own: NDArray, extent: Sequence[int]) -> list[float]:
        if self.spacing is not None:
            given = np.ravel(self.spacing).tolist()
            few = given * len(own) if len(given) == 1 else given
            return [*few, *own.tolist()[len(few) :]]
        finest = own.min()
        while self.largest and math.prod(extent * own / np.maximum(own, finest)) > self.largest:
            finest *= 1.02
        return np.maximum(own, finest).tolist()
