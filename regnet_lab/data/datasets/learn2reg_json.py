"""What the ``dataset.json`` of Learn2Reg 2021 and later says: images, pairs and their shapes."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from regnet_lab.data.io.images import existing_folder
from regnet_lab.errors import UserError

PAIRINGS = ("paired", "unpaired", "hybrid")

Images = tuple[str, str]  # fixed and moving, such as imagesTr/OASIS_0001_0000.nii.gz


@dataclass(frozen=True)
class Release:
    """A data set as its json file describes it.

    Every property and method raises a UserError that names the file and the key if a key is
    missing or holds something else.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, root: str | Path) -> "Release":
        """The release in a folder: its ``dataset.json`` or ``NAME_dataset.json``.

        Raises:
            UserError: There is none or more than one, or it is no json object.
        """
        folder = existing_folder(root, "Learn2Reg")
        found = sorted(folder.glob("*dataset.json"))
        if len(found) != 1:
            raise UserError(f"{folder}: holds {len(found)} files *dataset.json; there must be one.")
        try:
            content = json.loads(found[0].read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{found[0]}: is not valid json ({error}).") from error
        if not isinstance(content, dict):
            raise UserError(f"{found[0]}: must hold a json object with the keys of a release.")
        return cls(found[0], content)

    @property
    def folder(self) -> Path:
        """Where the data lie."""
        return self.path.parent

    def __getitem__(self, key: str) -> Any:
        if key not in self.content:
            raise UserError(f"{self.path}: the key '{key}' is missing.")
        return self.content[key]

    def listed(self, key: str) -> list[Images]:
        """The pairs of images below a key."""
        try:
            return [(plain(pair["fixed"]), plain(pair["moving"])) for pair in self[key]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: every entry of '{key}' needs the keys 'fixed' and 'moving'."
            ) from error

    @cached_property
    def validation(self) -> list[Images]:
        """The pairs of the validation set."""
        return self.listed("registration_val")

    @cached_property
    def test(self) -> list[Images]:
        """The pairs of the test set; empty where the release has none."""
        keys = [key for key in ("registration_test", "test_paired_images") if self.content.get(key)]
        return self.listed(keys[0]) if keys else []

    @cached_property
    def matched(self) -> set[Images]:
        """All pairs that are listed, as against combinations."""
        key = "training_paired_images"
        return {*self.validation, *self.test, *(self.listed(key) if key in self.content else [])}

    def images(self, key: str) -> dict[str, dict[str, str]]:
        """The images below a key and what is named beside each of them."""
        try:
            entries = [
                entry if isinstance(entry, dict) else {"image": entry} for entry in self[key]
            ]
            return {plain(entry["image"]): entry for entry in entries}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: every entry of '{key}' needs the key 'image'."
            ) from error

    @cached_property
    def entries(self) -> dict[str, dict[str, str]]:
        """What is named beside each image, for training and test."""
        return self.images("training") | (self.images("test") if "test" in self.content else {})

    def training(self, pairings: str) -> list[Images]:
        """The pairs to train on: listed (paired), combined (unpaired), or both (hybrid).

        No patient of a validation or test pair is among them.
        """
        if pairings not in PAIRINGS:
            raise UserError(f"pairings='{pairings}' is unknown; choose from {', '.join(PAIRINGS)}.")
        held_out = {patient(image) for pair in self.validation + self.test for image in pair}
        pairs = self.listed("training_paired_images") if pairings != "unpaired" else []
        pairs = [pair for pair in pairs if held_out.isdisjoint(map(patient, pair))]
        return pairs + (self.combinations(held_out) if pairings != "paired" else [])

    def combinations(self, held_out: Collection[str]) -> list[Images]:
        """Every image of the fixed modality with those of the moving one of other patients."""
        images = [image for image in self.images("training") if patient(image) not in held_out]
        fixed, moving = (
            [image for image in images if modality(image) == self.direction(side)]
            for side in ("fixed", "moving")
        )
        return [pair for pair in product(fixed, moving) if patient(pair[0]) != patient(pair[1])]

    def direction(self, side: str) -> int:
        """The modality of the fixed or the moving images."""
        try:
            return int(self["registration_direction"][side])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: 'registration_direction' needs a whole number as its '{side}'."
            ) from error

    def shape(self, image: str) -> tuple[int, ...]:
        """The promised shape of an image; modality 0 speaks for those that are not listed."""
        try:
            shapes = self["tensorImageShape"]
            return tuple(int(n) for n in shapes.get(str(modality(image)), shapes["0"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: 'tensorImageShape' needs a list of whole numbers as its '0'."
            ) from error


def plain(image: str) -> str:
    """The path without the leading ``./``."""
    return str(PurePosixPath(image))


def stem(image: str) -> str:
    """``imagesTr/OASIS_0001_0000.nii.gz`` -> ``OASIS_0001_0000``."""
    return image.rpartition("/")[2].partition(".")[0]


@cache
def patient(image: str) -> str:
    """``imagesTr/OASIS_0001_0000.nii.gz`` -> ``OASIS_0001``."""
    return stem(image).rpartition("_")[0]


def modality(image: str) -> int:
    """``imagesTr/OASIS_0001_0000.nii.gz`` -> 0.

    Raises:
        UserError: The name does not end in such a number.
    """
    number = stem(image).rpartition("_")[2]
    if not number.isdigit():
        raise UserError(f"{image}: the name must be TASK_patient_modality, as in OASIS_0001_0000.")
    return int(number)
