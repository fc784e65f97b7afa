"""Serial sections of tissue in different stains, and patches cut from them (ANHIR, BIRL).

Sections are pictures: axis 0 leads along a row (x), axis 1 down the columns (y), and lengths are
in pixels of the file, since what a picture says of millimetres is the resolution of a screen.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import escape
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from regnet_lab.data.case import Case, CasePairs, Points
from regnet_lab.data.io.cases import Scan
from regnet_lab.data.io.images import existing_folder, read_volume
from regnet_lab.data.preprocessing.cache import Arrays, MemoryCache
from regnet_lab.data.preprocessing.functional import centred_grid, percentile_range, resample
from regnet_lab.data.preprocessing.grids import CentredGrid
from regnet_lab.data.splits import SHARES, SPLITS, Splits, of_split
from regnet_lab.data.synthesis.deformed_images import alone
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

ATTEMPTS = 20

Sections = dict[str, dict[str, Path]]  # the file of every stain of every tissue


def stained(array: NDArray, low: float = 0.5, high: float = 99.5) -> NDArray[np.float32]:
    """Map the ``low`` and ``high`` percentiles to 1 and 0: tissue is bright, the bare slide 0."""
    return 1 - percentile_range(array, low, high)


class PixelGrid(CentredGrid):
    """:class:`regnet_lab.data.preprocessing.grids.CentredGrid` with pixels of the files for millimetres."""

    def scan(self, case: Case) -> Scan:
        return replace(super().scan(case), affine=np.eye(4))


def histology(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    splits: Splits = SHARES,
    image: str = "{tissue}/{stain}.jpg",
    landmarks: str = "{tissue}/{stain}[._]*csv",
    columns: Sequence[int | str] = ("X", "Y"),
    scales: Mapping[str, float] | None = None,
) -> CasePairs:
    """Every two stains of one tissue: both ways round in training, once otherwise.

    Args:
        split: ``train``, ``val`` or ``test``.
        root: Folder of the data set.
        prepare: Makes a pair of two cases.
        splits: Tissues of each split (:func:`regnet_lab.data.splits.of_split`).
        image: Path of a section below the root, where ``*`` is anything within a folder's name.
        landmarks: The same for its landmarks, as a shell's pattern; a section may have none.
        columns: Of x, which leads along a row, and y in the tables of landmarks.
        scales: Factor on the landmarks of a tissue that is not 1, such as 0.1 where they were set
            on the half-size image and the files are of a twentieth.

    Raises:
        UserError: There is no section, a name is ambiguous, or a tissue is unknown.
    """
    sections = find_sections(root, image)
    scales = scales or {}
    if unknown := sorted(scales.keys() - sections.keys()):
        raise UserError(f"scales: {root} has no tissue '{unknown[0]}', only {', '.join(sections)}.")

    def case(tissue: str, stain: str, path: Path) -> Case:
        table = landmarks_of(root, landmarks, tissue, stain)
        scale = scales.get(tissue, 1.0)
        points = Points(table, tuple(columns), scale=scale) if table else None
        return Case(f"{tissue}-{stain}", path, points=points)

    partners = permutations if split == "train" else combinations
    pairs = []
    for tissue in of_split(split, list(sections), splits, root):
        cases = [case(tissue, stain, path) for stain, path in sections[tissue].items()]
        pairs += list(partners(cases, 2))
    return CasePairs(pairs, prepare)


def find_sections(root: str, image: str) -> Sections:
    """Files below ``root`` that match a pattern with ``{tissue}`` and ``{stain}``.

    Raises:
        UserError: There is none, or one for several files.
    """
    folder = existing_folder(root, "histology")
    groups = {"{tissue}": "(?P<tissue>[^/]+)", "{stain}": "(?P<stain>[^/]+)", "*": "[^/]*"}
    pieces = re.split(r"(\{tissue\}|\{stain\}|\*)", image)
    expression = "".join(groups.get(piece, re.escape(piece)) for piece in pieces)
    found: Sections = {}
    for path in sorted(folder.glob(image.format(tissue="*", stain="*"))):
        match = re.fullmatch(expression, path.relative_to(folder).as_posix())
        if not match:
            continue
        stains = found.setdefault(match["tissue"], {})
        if match["stain"] in stains:
            raise UserError(
                f"{path} and {stains[match['stain']]} are the same section: narrow image={image}."
            )
        stains[match["stain"]] = path
    if not found:
        raise UserError(f"{folder}: there is no section {image} in this folder.")
    return found


def landmarks_of(root: str, landmarks: str, tissue: str, stain: str) -> Path | None:
    """The table of landmarks of a section, if there is one.

    Raises:
        UserError: There are several.
    """
    tables = sorted(Path(root).glob(landmarks.format(tissue=escape(tissue), stain=escape(stain))))
    if len(tables) > 1:
        raise UserError(
            f"{tables[0]} and {tables[1]} both fit section {stain}: narrow landmarks={landmarks}."
        )
    return tables[0] if tables else None


class Patches(Dataset[Pair]):
    """Patches cut at random from single images, each with itself, by (seed, split, index) alone.

    Item i is cut from image i mod n and lies wholly inside its margin.  They are to be deformed,
    see :class:`regnet_lab.data.synthesis.deformed_images.Deformed`.

    Args:
        split: ``train``, ``val`` or ``test``; they share no image.
        root: Folder of the images.
        images: Which files below it, as a shell's pattern.
        size: Pixels of a patch along each axis.
        splits: Names of the files below ``root`` for each split, or numbers of them
            (:func:`regnet_lab.data.splits.of_split`).
        per_image: Patches of every image.
        shrink: Pixels of the file in one of the patch.
        margin: Pixels of the shrunken image at each border that are in no patch.
        contrast: Least standard deviation; a plainer patch is drawn again, 20 times at most.
        intensity: Maps an image's values to about [0, 1].
        seed: Another seed, other patches.
        megabytes: Of images kept in memory.

    Raises:
        UserError: There is no image; when a patch is asked for, also that it is too small.
    """

    def __init__(
        self,
        split: str,
        root: str,
        images: str,
        size: Sequence[int],
        splits: Splits = SHARES,
        per_image: int = 20,
        shrink: float = 1,
        margin: int = 0,
        contrast: float = 0.04,
        intensity: Callable[[NDArray], NDArray[np.float32]] = stained,
        seed: int = 0,
        megabytes: float = 1024,
    ) -> None:
        folder = existing_folder(root, "patches")
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob(images))}
        if not files:
            raise UserError(f"{folder}: there is no image {images} in this folder.")
        self.paths = [files[name] for name in of_split(split, list(files), splits, root)]
        self.size, self.per_image = tuple(size), per_image
        self.shrink, self.margin, self.contrast = shrink, margin, contrast
        self.intensity, self.key = intensity, (seed, SPLITS.index(split))
        self.cache = MemoryCache(megabytes)

    def __len__(self) -> int:
        return len(self.paths) * self.per_image

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"patch {index} of {len(self)}")
        path = self.paths[index % len(self.paths)]
        image = self.cache.get(str(path), lambda: self._read(path))["image"]
        rng = np.random.default_rng([*self.key, index])
        for _ in range(ATTEMPTS):
            patch = image[self._window(rng, path, image.shape)]
            if patch.std() >= self.contrast:
                break
        name = f"{path.parent.name}-{path.stem}-{index:05d}"
        return alone(torch.from_numpy(patch.copy())[None], name)

    def _read(self, path: Path) -> Arrays:
        array = read_volume(path).array
        shape, matrix = centred_grid(array.shape, np.full(array.ndim, float(self.shrink)))
        return {"image": resample(self.intensity(array), matrix, shape)}

    def _window(
        self, rng: np.random.Generator, path: Path, shape: Sequence[int]
    ) -> tuple[slice, ...]:
        """Where a patch is cut; every place inside the margin is as likely."""
        fits = len(shape) == len(self.size)
        room = [n - s - 2 * self.margin for n, s in zip(shape, self.size, strict=fits)]
        if not fits or min(room) < 0:
            raise UserError(
                f"{path}: no patch {list(self.size)} fits into {list(shape)} voxels with a margin "
                f"of {self.margin}; choose size, margin or shrink to suit."
            )
        start = [self.margin + int(rng.integers(r + 1)) for r in room]
        return tuple(slice(a, a + s) for a, s in zip(start, self.size, strict=True))
