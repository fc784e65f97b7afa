"""Two cases on one voxel grid: what a layout's files become before a model sees them.

The classes differ in where they place the grid, and share reading, resampling and keeping.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.io.cases import Scan, identity, read_scan
from regnet_lab.data.io.formats import files_of
from regnet_lab.data.io.images import Volume, decode
from regnet_lab.data.preprocessing.cache import Arrays, content, fingerprint, open_cache
from regnet_lab.data.preprocessing.functional import (
    Matrix,
    Selection,
    centred_grid,
    percentile_range,
    resample,
    resample_nearest,
    select_labels,
    stretched_grid,
)
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.types import Pair

REVISION = 1  # of what is done to a case; a new one leaves old cache entries behind
LIMIT = 4096  # megabytes kept in memory

Shape = tuple[int, ...]
Spacing = float | Sequence[float] | None


def factors(spacing: Spacing, own: NDArray[np.float64]) -> NDArray[np.float64]:
    """New voxels in old ones along each axis; ones where no spacing is asked for.

    Raises:
        UserError: The spacing is neither one positive number nor one for each axis.
    """
    wanted = own if spacing is None else np.asarray(spacing)
    fits = wanted.dtype.kind in "iuf" and wanted.size in (1, own.size)
    if not fits or not (wanted > 0).all():
        raise UserError(f"spacing={spacing} must be one positive number of mm, or {own.size}.")
    return wanted / own


class Grid(ABC):
    """Prepare two cases; a subclass places the grid.

    Args:
        shape: Of the grid.
        intensity: Maps an image's values to about [0, 1]; with ``shared_range`` it is also given
            the fixed image as ``like``, whose range it is to use.
        labels: Label values to keep, or groups ``{new: [old, ...]}``; null: all as they are.
        shared_range: Map both images by the fixed one's range.
        outside: What lies beyond an image's field of view: its ``minimum``, or its ``border``
            continued, which makes no faces for a similarity to hold on to.
        cache: ``memory``, a folder, or null.
        megabytes: Bound of ``memory``, in each process that loads.

    The pair has masks and landmarks if the cases have them; landmarks are in voxels of the grid.
    """

    needs_fixed = False  # whether the fixed case decides where the moving one's grid lies

    def __init__(
        self,
        shape: Sequence[int] | None,
        intensity: Callable[..., NDArray[np.float32]] = percentile_range,
        labels: Selection = None,
        shared_range: bool = False,
        outside: str = "minimum",
        cache: str | None = "memory",
        megabytes: float = LIMIT,
    ) -> None:
        self.shape = None if shape is None else tuple(shape)
        self.intensity, self.labels, self.shared_range = intensity, labels, shared_range
        self.outside = outside
        self.cache = open_cache(cache, megabytes)

    @abstractmethod
    def place(self, scan: Scan, fixed: Scan) -> tuple[Shape, Matrix]:
        """Shape of the grid and the matrix from its voxels to those of ``scan``."""

    def scan(self, case: Case) -> Scan:
        """Read a case, remembering its files if other entries of the cache need them too."""
        again = self.needs_fixed or case.phase is not None or case.slice is not None
        return read_scan(case, self._decode if again else decode)

    def affine(self, fixed: Case) -> coordinates.Matrix:
        """From voxels of a fixed case's grid to millimetres, RAS+ (4, 4)."""
        scan = self.scan(fixed)
        return scan.affine @ coordinates.embedded(self.place(scan, scan)[1])

    def _decode(self, path: Path) -> Volume:
        key = fingerprint(REVISION, [content(file) for file in files_of(path)])
        return Volume(**self.cache.get(key, lambda: vars(decode(path))))

    def prepare(self, case: Case, fixed: Case) -> Arrays:
        """One side of a pair on its grid: image, labels, mask and points, by their keys' endings.

        Raises:
            UserError: A file is faulty, or an image has not as many axes as the grid.
        """
        scan = self.scan(case)
        reference = scan if case == fixed else self.scan(fixed)
        ndim = len(self.shape) if self.shape else reference.image.ndim
        for name, found in ((case.image, scan.image.ndim), (fixed.image, reference.image.ndim)):
            if found != ndim:
                raise UserError(f"{name}: has {found} axes, but the grid has {ndim}.")
        shape, matrix = self.place(scan, reference)
        like = {"like": reference.image} if self.shared_range else {}
        spacing = coordinates.spacing(scan.affine @ coordinates.embedded(matrix), ndim)
        arrays = {
            "": resample(self.intensity(scan.image, **like), matrix, shape, self.outside)[None],
            "spacing": spacing.astype(np.float32),
        }
        if scan.labels is not None:
            labels = select_labels(scan.labels, self.labels)
            arrays["_labels"] = resample_nearest(labels, matrix, shape)[None]
        if scan.mask is not None:
            mask = (scan.mask > 0).astype(np.float32)
            arrays["_mask"] = resample_nearest(mask, matrix, shape)[None]
        if scan.points is not None:
            moved = coordinates.transform(np.linalg.inv(matrix), scan.points)
            arrays["_points"] = moved.astype(np.float32)
        return arrays

    @cached_property
    def settings(self) -> str:
        """Hash of what decides how a case is prepared."""
        options = {name: value for name, value in vars(self).items() if name != "cache"}
        return fingerprint(REVISION, type(self).__name__, options)

    def prepared(self, case: Case, fixed: Case) -> Arrays:
        """One side of a pair through the cache."""
        alone = case == fixed or not (self.needs_fixed or self.shared_range)
        cases = [identity(case)] if alone else [identity(case), identity(fixed)]
        key = fingerprint(self.settings, cases)
        return self.cache.get(key, lambda: self.prepare(case, fixed))

    def __call__(self, fixed: Case, moving: Case) -> Pair:
        sides = {"moving": self.prepared(moving, fixed), "fixed": self.prepared(fixed, fixed)}
        count = {name: len(side["_points"]) for name, side in sides.items() if "_points" in side}
        if len(set(count.values())) > 1:
            raise UserError(
                f"{fixed.points.path} has {count['fixed']} landmarks, "  # type: ignore[union-attr]
                f"but {moving.points.path} has {count['moving']}."  # type: ignore[union-attr]
            )
        pair: dict = {"name": f"{fixed.name}_{moving.name}"}
        for side, arrays in sides.items():
            named = {k if k == "spacing" else side + k: a for k, a in arrays.items()}
            pair |= {key: torch.from_numpy(np.array(array)) for key, array in named.items()}
        return Pair(**pair)  # type: ignore[typeddict-item]


class CentredGrid(Grid):
    """Bring every image to one voxel grid by centring it there, whatever its world coordinates.

    For data whose arrays are comparable voxel by voxel, such as cut-out organs at one spacing.

    Args:
        shape: The grid; smaller images are padded, larger ones cut.
        spacing: Millimetres per voxel to which images are resampled first; null: as they are.
        outside: As :class:`Grid`; here every image needs padding, so its border continues.
        **more: As :class:`Grid`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Spacing = None,
        outside: str = "border",
        **more: object,
    ) -> None:
        super().__init__(shape, outside=outside, **more)  # type: ignore[arg-type]
        self.spacing = spacing

    def place(self, scan: Scan, fixed: Scan) -> tuple[Shape, Matrix]:
        own = coordinates.spacing(scan.affine, scan.image.ndim)
        return centred_grid(scan.image.shape, factors(self.spacing, own), self.shape)


class StretchedGrid(Grid):
    """Stretch every image's field of view over one voxel grid, whatever its shape and spacing.

    Args:
        shape: The grid.
        **more: As :class:`Grid`.
    """

    def __init__(self, shape: Sequence[int], **more: object) -> None:
        super().__init__(shape, **more)  # type: ignore[arg-type]

    def place(self, scan: Scan, fixed: Scan) -> tuple[Shape, Matrix]:
        shape: Shape = self.shape  # type: ignore[assignment]
        return shape, stretched_grid(scan.image.shape, shape)


class WorldGrid(Grid):
    """Resample the moving image onto the fixed image's grid through world coordinates.

    Args:
        shape: Centred on the fixed image, which is padded or cut; null: as much as covers it.
        spacing: Millimetres per voxel; null: the fixed image's own.
        **more: As :class:`Grid`.
    """

    needs_fixed = True

    def __init__(
        self, shape: Sequence[int] | None = None, spacing: Spacing = None, **more: object
    ) -> None:
        super().__init__(shape, **more)  # type: ignore[arg-type]
        self.spacing = spacing

    def place(self, scan: Scan, fixed: Scan) -> tuple[Shape, Matrix]:
        ndim = fixed.image.ndim
        own = coordinates.spacing(fixed.affine, ndim)
        shape, matrix = centred_grid(fixed.image.shape, factors(self.spacing, own), self.shape)
        return shape, coordinates.voxel_to_voxel(fixed.affine, scan.affine, ndim) @ matrix
