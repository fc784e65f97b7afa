"""Preprocessors that bring the two cases of a pair to one voxel grid.

The classes differ in where they place the grid; reading, resampling and caching are shared.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_lab.data.case import Case
from regnet_lab.data.io.cases import LoadedCase, fingerprint_case, read_case
from regnet_lab.data.io.images import Volume, decode_image
from regnet_lab.data.io.landmarks import check_landmark_counts
from regnet_lab.data.preprocessing.cache import (
    Arrays,
    compute_fingerprint,
    hash_image,
    hash_sources,
    open_cache,
)
from regnet_lab.data.preprocessing.functional import (
    LabelSelection,
    Matrix,
    compute_centered_grid,
    compute_stretch_matrix,
    normalize_percentiles,
    resample_image,
    resample_labels,
    select_labels,
)
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.types import Pair

DEFAULT_CACHE_MEGABYTES = 4096
SIDE_ARRAYS = ("image", "spacing", "labels", "mask", "points")  # of one side of a pair

Shape = tuple[int, ...]
Spacing = float | Sequence[float] | None
DecodedFiles = dict[Path, Volume]


def compute_spacing_ratio(
    spacing: Spacing, image_spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute the size of a new voxel in voxels of the image, per axis; ones without spacing."""
    target_spacing = image_spacing if spacing is None else np.asarray(spacing)
    fits = target_spacing.dtype.kind in "iuf" and target_spacing.size in (1, image_spacing.size)
    if not fits or not (target_spacing > 0).all():
        raise UserError(
            f"spacing={spacing} must be one positive number of mm, or {image_spacing.size}."
        )
    return target_spacing / image_spacing


class PairPreprocessor(ABC):
    """Base class of preprocessors, called as ``preprocessor(fixed_case, moving_case)``.

    The pair has labels, masks and landmarks if the cases have them; landmarks are in voxels of the
    grid.  Each file is decoded at most once per pair.

    Args:
        shape: Shape of the grid.
        intensity: Function that maps an image's values to about [0, 1]; with ``shared_range`` it is
            also given the fixed image as ``like``, whose range it is to use.
        labels: Label values to keep, or groups ``{new: {name: ..., labels: [old, ...]}}``; null
            keeps all as they are.
        shared_range: Map both images by the range of the fixed one.
        padding_mode: Values outside an image's field of view: its ``minimum``, or its ``border``
            continued, which leaves no edges for a similarity to align.
        trust_array_order: Take labels and masks of the image's shape in array order, even if their
            headers place them elsewhere.
        cache: ``memory``, a folder, or null.
        megabytes: Limit of ``memory``, in each loading process.
    """

    needs_fixed = False  # whether the grid of the moving case depends on the fixed one
    spacing: Spacing = None  # of the grid in mm; None: that of the image

    def __init__(
        self,
        shape: Sequence[int] | None,
        intensity: Callable[..., NDArray[np.float32]] = normalize_percentiles,
        labels: LabelSelection = None,
        shared_range: bool = False,
        padding_mode: str = "minimum",
        trust_array_order: bool = False,
        cache: str | None = "memory",
        megabytes: float = DEFAULT_CACHE_MEGABYTES,
    ) -> None:
        self.shape = None if shape is None else tuple(shape)
        self.intensity, self.labels, self.shared_range = intensity, labels, shared_range
        self.padding_mode, self.trust_array_order = padding_mode, trust_array_order
        self.cache = open_cache(cache, megabytes)

    @abstractmethod
    def compute_grid(self, loaded: LoadedCase, fixed: LoadedCase) -> tuple[Shape, Matrix]:
        """Return the shape of the grid and the matrix from its voxels to those of ``loaded``."""

    def read_case(self, case: Case, decoded: DecodedFiles | None = None) -> LoadedCase:
        """Read all files of a case, except those in ``decoded``, to which new ones are added."""
        decoded = {} if decoded is None else decoded
        shared = self.needs_fixed or case.phase is not None or case.slice is not None

        def decode_once(path: Path) -> Volume:
            if path not in decoded:
                decoded[path] = self._decode_cached(path) if shared else decode_image(path)
            return decoded[path]

        return read_case(case, decode_once, self.trust_array_order)

    def _decode_cached(self, path: Path) -> Volume:
        """Decode a file of which other pairs need another frame, slice or grid."""
        key = compute_fingerprint(hash_sources(), hash_image(path))
        return Volume(**self.cache.get_or_create(key, lambda: vars(decode_image(path))))

    def compute_affine(self, fixed: Case) -> coordinates.Matrix:
        """Compute the matrix (4, 4) from voxels of a fixed case's grid to millimetres, RAS+."""
        loaded = self.read_case(fixed)
        matrix = self.compute_grid(loaded, loaded)[1]
        return loaded.affine @ coordinates.embed_in_3d(matrix)

    def _depends_on_fixed(self, case: Case, fixed: Case) -> bool:
        return case != fixed and (self.needs_fixed or self.shared_range)

    def preprocess_side(
        self, case: Case, fixed: Case, decoded: DecodedFiles | None = None
    ) -> Arrays:
        """Read one case of a pair and resample it to its grid, (1, *shape).

        Returns:
            Those of ``SIDE_ARRAYS`` that the case has.
        """
        decoded = {} if decoded is None else decoded
        loaded = self.read_case(case, decoded)
        dependent = self._depends_on_fixed(case, fixed)
        reference = self.read_case(fixed, decoded) if dependent else loaded
        ndim = len(self.shape) if self.shape else reference.image.ndim
        for path, axes in ((case.image, loaded.image.ndim), (fixed.image, reference.image.ndim)):
            if axes != ndim:
                raise UserError(f"{path}: has {axes} axes, but the grid has {ndim}.")
        shape, matrix = self.compute_grid(loaded, reference)
        like = {"like": reference.image} if self.shared_range else {}
        image = self.intensity(loaded.image, **like)
        affine = loaded.affine @ coordinates.embed_in_3d(matrix)
        arrays = {
            "image": resample_image(image, matrix, shape, self.padding_mode)[None],
            "spacing": coordinates.affine_to_spacing(affine, ndim).astype(np.float32),
        }
        if loaded.labels is not None:
            labels = select_labels(loaded.labels, self.labels)
            arrays["labels"] = resample_labels(labels, matrix, shape)[None]
        if loaded.mask is not None:
            mask = loaded.mask.astype(np.float32)
            arrays["mask"] = resample_labels(mask, matrix, shape)[None]
        if loaded.points is not None:
            points = coordinates.apply_affine(np.linalg.inv(matrix), loaded.points)
            arrays["points"] = points.astype(np.float32)
        return arrays

    @cached_property
    def settings(self) -> str:
        """Hash of everything that decides how a case is preprocessed."""
        options = {name: value for name, value in vars(self).items() if name != "cache"}
        return compute_fingerprint(hash_sources(), type(self).__name__, options)

    def load_side(self, case: Case, fixed: Case, decoded: DecodedFiles | None = None) -> Arrays:
        """Return the arrays of :meth:`preprocess_side` from the cache, created if missing."""
        cases = [case, fixed] if self._depends_on_fixed(case, fixed) else [case]
        key = compute_fingerprint(self.settings, list(map(fingerprint_case, cases)))
        return self.cache.get_or_create(key, lambda: self.preprocess_side(case, fixed, decoded))

    def __call__(self, fixed: Case, moving: Case) -> Pair:
        decoded: DecodedFiles = {}
        sides = {
            "moving": self.load_side(moving, fixed, decoded),
            "fixed": self.load_side(fixed, fixed, decoded),
        }
        points = [sides[side].get("points") for side in ("fixed", "moving")]
        check_landmark_counts((fixed, moving), [None if p is None else len(p) for p in points])
        pair: dict[str, Any] = {"name": f"{fixed.name}_{moving.name}"}
        for side, arrays in sides.items():
            keys = {"image": side, "spacing": "spacing"}
            for name in SIDE_ARRAYS:
                if name in arrays:
                    key = keys.get(name, f"{side}_{name}")
                    pair[key] = torch.from_numpy(np.array(arrays[name]))
        return cast(Pair, pair)


class CropOrPad(PairPreprocessor):
    """Crop or pad every image about its centre to one shape, ignoring world coordinates.

    For data whose arrays correspond voxel by voxel, such as cut-out organs at one spacing.

    Args:
        shape: Shape of the grid; smaller images are padded, larger ones cropped.
        spacing: Millimetres per voxel to which images are resampled first; null keeps theirs.
        padding_mode: As in :class:`PairPreprocessor`, by default ``border``.
        **more: As in :class:`PairPreprocessor`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        spacing: Spacing = None,
        padding_mode: str = "border",
        **more: Any,
    ) -> None:
        super().__init__(shape, padding_mode=padding_mode, **more)
        self.spacing = spacing

    def compute_grid(self, loaded: LoadedCase, fixed: LoadedCase) -> tuple[Shape, Matrix]:
        image_spacing = coordinates.affine_to_spacing(loaded.affine, loaded.image.ndim)
        ratio = compute_spacing_ratio(self.spacing, image_spacing)
        return compute_centered_grid(loaded.image.shape, ratio, self.shape)


class Resize(PairPreprocessor):
    """Resize every image to one shape, whatever its own shape and spacing.

    Its arguments are those of :class:`PairPreprocessor`.
    """

    def compute_grid(self, loaded: LoadedCase, fixed: LoadedCase) -> tuple[Shape, Matrix]:
        shape = cast(Shape, self.shape)
        return shape, compute_stretch_matrix(loaded.image.shape, shape)


class ResampleToFixed(PairPreprocessor):
    """Resample the moving image to the grid of the fixed image through world coordinates.

    Args:
        shape: Shape of a grid centred on the fixed image, which is padded or cropped; null covers
            the whole fixed image.
        spacing: Millimetres per voxel; null keeps that of the fixed image.
        **more: As in :class:`PairPreprocessor`.
    """

    needs_fixed = True

    def __init__(
        self, shape: Sequence[int] | None = None, spacing: Spacing = None, **more: Any
    ) -> None:
        super().__init__(shape, **more)
        self.spacing = spacing

    def compute_grid(self, loaded: LoadedCase, fixed: LoadedCase) -> tuple[Shape, Matrix]:
        ndim = fixed.image.ndim
        image_spacing = coordinates.affine_to_spacing(fixed.affine, ndim)
        ratio = compute_spacing_ratio(self.spacing, image_spacing)
        shape, matrix = compute_centered_grid(fixed.image.shape, ratio, self.shape)
        to_moving = coordinates.voxel_to_voxel_matrix(fixed.affine, loaded.affine, ndim)
        return shape, to_moving @ matrix
