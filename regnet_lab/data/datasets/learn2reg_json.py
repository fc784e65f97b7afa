"""The ``dataset.json`` of Learn2Reg 2021 and later: images, pairs and their shapes."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from regnet_lab.data.io.images import require_folder
from regnet_lab.errors import UserError

PAIRINGS = ("paired", "unpaired", "hybrid")

ImagePair = tuple[str, str]  # fixed and moving, such as imagesTr/OASIS_0001_0000.nii.gz


@dataclass(frozen=True)
class DatasetDescription:
    """The content of a ``dataset.json``.

    Every property and method raises a UserError that names the file and the key if a key is
    missing or has a wrong value.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, root: str | Path) -> "DatasetDescription":
        """Read the ``dataset.json`` or ``NAME_dataset.json`` of a folder."""
        folder = require_folder(root, "Learn2Reg")
        paths = sorted(folder.glob("*dataset.json"))
        if len(paths) != 1:
            raise UserError(f"{folder}: holds {len(paths)} files *dataset.json; there must be one.")
        try:
            content = json.loads(paths[0].read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{paths[0]}: is not valid json ({error}).") from error
        if not isinstance(content, dict):
            raise UserError(f"{paths[0]}: must contain a json object with the keys of a release.")
        return cls(paths[0], content)

    @property
    def folder(self) -> Path:
        """Folder of the data set."""
        return self.path.parent

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise UserError(f"{self.path}: the key '{key}' is missing.")
        return self.content[key]

    def list_pairs(self, key: str) -> list[ImagePair]:
        """List the pairs of images below a key."""
        try:
            return [(normalize_path(p["fixed"]), normalize_path(p["moving"])) for p in self[key]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: every entry of '{key}' needs the keys 'fixed' and 'moving'."
            ) from error

    @cached_property
    def validation(self) -> list[ImagePair]:
        """The pairs of the validation set."""
        return self.list_pairs("registration_val")

    @cached_property
    def test(self) -> list[ImagePair]:
        """The pairs of the test set; empty where the release has none."""
        keys = [key for key in ("registration_test", "test_paired_images") if self.content.get(key)]
        return self.list_pairs(keys[0]) if keys else []

    @cached_property
    def corresponding_pairs(self) -> set[ImagePair]:
        """All pairs that the json lists, in contrast to combinations of images."""
        key = "training_paired_images"
        training = self.list_pairs(key) if key in self.content else []
        return {*self.validation, *self.test, *training}

    def list_images(self, key: str) -> dict[str, dict[str, str]]:
        """List the images below a key, each with the files of its entry."""
        try:
            entries = [e if isinstance(e, dict) else {"image": e} for e in self[key]]
            return {normalize_path(entry["image"]): entry for entry in entries}
        except (KeyError, TypeError) as error:
            message = f"{self.path}: every entry of '{key}' needs the key 'image'."
            raise UserError(message) from error

    @cached_property
    def entries(self) -> dict[str, dict[str, str]]:
        """The entries of all training and test images."""
        test = self.list_images("test") if "test" in self.content else {}
        return self.list_images("training") | test

    def list_training_pairs(self, pairings: str) -> list[ImagePair]:
        """List the training pairs: those of the json (paired), combinations (unpaired), or both
        (hybrid), without patients of validation and test pairs.
        """
        if pairings not in PAIRINGS:
            raise UserError(f"pairings='{pairings}' is unknown; choose from {', '.join(PAIRINGS)}.")
        held_out = {get_patient(image) for pair in self.validation + self.test for image in pair}
        pairs = self.list_pairs("training_paired_images") if pairings != "unpaired" else []
        pairs = [pair for pair in pairs if held_out.isdisjoint(map(get_patient, pair))]
        return pairs + (self.combine_images(held_out) if pairings != "paired" else [])

    def combine_images(self, held_out: Collection[str]) -> list[ImagePair]:
        """Combine every image of the fixed modality with those of the moving modality of other
        patients.
        """
        images = [i for i in self.list_images("training") if get_patient(i) not in held_out]
        fixed, moving = (
            [image for image in images if parse_modality(image) == self.get_modality(side)]
            for side in ("fixed", "moving")
        )
        pairs = product(fixed, moving)
        return [pair for pair in pairs if get_patient(pair[0]) != get_patient(pair[1])]

    def get_modality(self, side: str) -> int:
        """Return the modality of the fixed or the moving images."""
        try:
            return int(self["registration_direction"][side])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: 'registration_direction' needs a whole number as its '{side}'."
            ) from error

    def get_shape(self, image: str) -> tuple[int, ...]:
        """Return the stated shape of an image: that of its modality, or else of modality 0."""
        try:
            shapes = self["tensorImageShape"]
            return tuple(int(n) for n in shapes.get(str(parse_modality(image)), shapes["0"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: 'tensorImageShape' needs a list of whole numbers as its '0'."
            ) from error


def normalize_path(image: str) -> str:
    """Return a path without the leading ``./``."""
    return str(PurePosixPath(image))


def get_stem(image: str) -> str:
    """Return the file name without suffix.

    >>> get_stem("imagesTr/OASIS_0001_0000.nii.gz")
    'OASIS_0001_0000'
    """
    return image.rpartition("/")[2].partition(".")[0]


@cache
def get_patient(image: str) -> str:
    """Return task and patient of an image.

    >>> get_patient("imagesTr/OASIS_0001_0000.nii.gz")
    'OASIS_0001'
    """
    return get_stem(image).rpartition("_")[0]


def parse_modality(image: str) -> int:
    """Parse the modality of an image, the last number of its name.

    >>> parse_modality("imagesTr/OASIS_0001_0000.nii.gz")
    0
    """
    number = get_stem(image).rpartition("_")[2]
    if not number.isdigit():
        raise UserError(f"{image}: the name must be TASK_patient_modality, as in OASIS_0001_0000.")
    return int(number)
