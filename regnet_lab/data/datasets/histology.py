"""Serial sections of tissue in different stains, and patches cut from them (ANHIR, BIRL).

Sections are pictures: axis 0 leads along a row (x), axis 1 down the columns (y).  Lengths are in
pixels of the file, since the millimetres in its header are the resolution of a screen.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from regnet_lab.data.case import Case, CasePair, LandmarkFile
from regnet_lab.data.datasets.base import CasePairs, PairDataset, Prepare
from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.io.images import read_volume, require_folder
from regnet_lab.data.preprocessing.cache import Arrays, MemoryCache
from regnet_lab.data.preprocessing.functional import (
    compute_centered_grid,
    resample_image,
    rescale_to_unit_range,
)
from regnet_lab.data.preprocessing.grids import CropOrPad, DecodedFiles
from regnet_lab.data.splits import DEFAULT_SPLITS, SPLITS, SplitSpec, select_subjects
from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

MAX_DRAWS = 20  # of a patch that has enough contrast

Sections = dict[str, dict[str, Path]]  # files by tissue and stain


def normalize_stain(
    array: NDArray, low: float = 0.5, high: float = 99.5, like: NDArray | None = None
) -> NDArray[np.float32]:
    """Map the ``low`` and ``high`` percentiles to 1 and 0: tissue is bright, the bare slide 0.

    The bare slide belongs to the range even where it has one value; black and values that are not
    finite do not.
    """
    values = array if like is None else like
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size:
        return np.zeros(array.shape, np.float32)
    return 1 - rescale_to_unit_range(array, *np.percentile(values, [low, high]))


class PixelCropOrPad(CropOrPad):
    """:class:`regnet_lab.data.preprocessing.grids.CropOrPad` of pictures: a pixel is 1 mm."""

    def read_case(self, case: Case, decoded: DecodedFiles | None = None) -> LoadedCase:
        return replace(super().read_case(case, decoded), affine=np.eye(4))


def list_histology_pairs(
    split: str,
    root: str,
    prepare: Prepare,
    splits: SplitSpec = DEFAULT_SPLITS,
    image: str = "{tissue}/{stain}.jpg",
    landmarks: str = "{tissue}/{stain}[._]*csv",
    landmark_columns: Sequence[int | str] = ("X", "Y"),
    landmark_scales: Mapping[str, float] | None = None,
) -> CasePairs:
    """List all pairs of stains of one tissue: in both directions in training, else in one.

    ``splits`` divides the tissues (:func:`regnet_lab.data.splits.select_subjects`).  ``image`` is
    the path of a section below ``root``, where ``*`` matches anything within one name;
    ``landmarks`` is the same for its landmarks, as a shell pattern; a section may have none.
    ``landmark_columns`` are those of x, which leads along a row, and y.  ``landmark_scales`` are
    factors on the landmarks of a tissue where it is not 1, such as 0.1 for landmarks set on
    half-size images if the files are a twentieth of full size.
    """
    sections = find_sections(root, image)
    scales = landmark_scales or {}
    if unknown := sorted(scales.keys() - sections.keys()):
        raise UserError(
            f"landmark_scales: {root} has no tissue '{unknown[0]}', only {', '.join(sections)}."
        )

    def make_case(tissue: str, stain: str, path: Path) -> Case:
        table = find_landmark_table(root, landmarks, tissue, stain)
        scale = scales.get(tissue, 1.0)
        points = LandmarkFile(table, tuple(landmark_columns), scale=scale) if table else None
        return Case(f"{tissue}-{stain}", path, points=points)

    combine = permutations if split == "train" else combinations
    pairs: list[CasePair] = []
    for tissue in select_subjects(split, list(sections), splits, root):
        cases = [make_case(tissue, stain, path) for stain, path in sections[tissue].items()]
        pairs += combine(cases, 2)
    return CasePairs(pairs, prepare)


def find_sections(root: str, image: str) -> Sections:
    """Find the files below ``root`` that match a pattern with ``{tissue}`` and ``{stain}``."""
    folder = require_folder(root, "histology")
    groups = {"{tissue}": "(?P<tissue>[^/]+)", "{stain}": "(?P<stain>[^/]+)", "*": "[^/]*"}
    pieces = re.split(r"(\{tissue\}|\{stain\}|\*)", image)
    expression = "".join(groups.get(piece, re.escape(piece)) for piece in pieces)
    sections: Sections = {}
    for path in sorted(folder.glob(image.format(tissue="*", stain="*"))):
        match = re.fullmatch(expression, path.relative_to(folder).as_posix())
        if not match:
            continue
        stains = sections.setdefault(match["tissue"], {})
        if match["stain"] in stains:
            raise UserError(
                f"{path} and {stains[match['stain']]} are the same section: narrow image={image}."
            )
        stains[match["stain"]] = path
    if not sections:
        raise UserError(f"{folder}: there is no section {image} in this folder.")
    return sections


def find_landmark_table(root: str, landmarks: str, tissue: str, stain: str) -> Path | None:
    """Find the landmark table of a section, if there is one."""
    tables = sorted(Path(root).glob(landmarks.format(tissue=escape(tissue), stain=escape(stain))))
    if len(tables) > 1:
        raise UserError(
            f"{tables[0]} and {tables[1]} both fit section {stain}: narrow landmarks={landmarks}."
        )
    return tables[0] if tables else None


@dataclass(eq=False, repr=False)
class SectionPatches(PairDataset):
    """Random patches of single images, each paired with itself, from (seed, split, index) alone.

    Item i is cut from image i mod n, inside its margin.  Patches are to be deformed by
    :class:`regnet_lab.data.synthesis.deformed_images.DeformedImages`.
    """

    split: str  # ``train``, ``val`` or ``test``; they share no image
    root: str  # folder of the images
    pattern: str  # shell pattern of the files below it
    patch_size: Sequence[int]  # size of a patch in pixels along each axis
    # names of the files below ``root`` for each split, or numbers of them
    # (:func:`regnet_lab.data.splits.select_subjects`)
    splits: SplitSpec = field(default_factory=lambda: DEFAULT_SPLITS)
    patches_per_image: int = 20  # number of patches of every image
    downsample_factor: float = 1  # size of a pixel of the patch in pixels of the file
    margin: int = 0  # pixels of the downsampled image at each border that are in no patch
    # smallest standard deviation; a patch below it is drawn again, at most 20 times
    min_std: float = 0.04
    # function that maps an image's values to about [0, 1]
    intensity: Callable[[NDArray], NDArray[np.float32]] = normalize_stain
    seed: int = 0  # seed of the patches
    megabytes: float = 1024  # limit of the images kept in memory

    def __post_init__(self) -> None:
        folder = require_folder(self.root, "patches")
        matches = sorted(folder.glob(self.pattern))
        files = {path.relative_to(folder).as_posix(): path for path in matches}
        if not files:
            raise UserError(f"{folder}: there is no image {self.pattern} in this folder.")
        names = select_subjects(self.split, list(files), self.splits, self.root)
        self.paths = [files[name] for name in names]
        self.cache = MemoryCache(self.megabytes)

    def __len__(self) -> int:
        return len(self.paths) * self.patches_per_image

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        path = self.paths[index % len(self.paths)]
        image = self.cache.get_or_create(str(path), lambda: self._read_image(path))["image"]
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        for _ in range(MAX_DRAWS):
            patch = image[self._draw_box(rng, path, image.shape)]
            if patch.std() >= self.min_std:
                break
        name = f"{path.parent.name}-{path.stem}-{index:05d}"
        return make_self_pair(torch.from_numpy(patch.copy())[None], name)

    def _read_image(self, path: Path) -> Arrays:
        array = read_volume(path).array
        factor = np.full(array.ndim, float(self.downsample_factor))
        shape, matrix = compute_centered_grid(array.shape, factor)
        return {"image": resample_image(self.intensity(array), matrix, shape)}

    def _draw_box(
        self, rng: np.random.Generator, path: Path, shape: Sequence[int]
    ) -> tuple[slice, ...]:
        """Draw the position of a patch, uniformly inside the margin."""
        fits = len(shape) == len(self.patch_size)
        room = [n - s - 2 * self.margin for n, s in zip(shape, self.patch_size, strict=fits)]
        if not fits or min(room) < 0:
            raise UserError(
                f"{path}: no patch {list(self.patch_size)} fits into {list(shape)} voxels with a "
                f"margin of {self.margin}; lower patch_size, margin or downsample_factor."
            )
        start = [self.margin + int(rng.integers(r + 1)) for r in room]
        return tuple(slice(a, a + s) for a, s in zip(start, self.patch_size, strict=True))
