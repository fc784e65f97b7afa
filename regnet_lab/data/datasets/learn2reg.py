"""Learn2Reg 2021 and later: any folder with a ``dataset.json`` (releases 1.1 and 2).

The file lists images as ``./imagesTr/TASK_patient_modality.nii.gz``, pairs of them, and what else
there is: ``labelsTr`` and ``masksTr`` with the same file names, ``keypointsTr`` and ``landmarksTr``
with ``.csv`` (voxels, no header; the json says ``.nii.gz``). The patients of the validation pairs
lie among the training images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel

from regnet_lab.data.case import Case, CasePairs, Points
from regnet_lab.data.datasets.learn2reg_json import Images, Release, stem
from regnet_lab.data.io.images import UNREADABLE
from regnet_lab.errors import UserError
from regnet_lab.types import Pair

POINTS = ("landmarks", "keypoints")
PROVIDED = ("label", "mask", *POINTS)


def l2r(
    split: str,
    root: str,
    prepare: Callable[[Case, Case], Pair],
    use: Sequence[str] = PROVIDED,
    pairings: str | None = None,
) -> CasePairs:
    """The pairs of a split.

    Validation pairs are ``registration_val``; test pairs ``registration_test`` or
    ``test_paired_images``, or the validation pairs where neither has any. Training pairs are
    ``training_paired_images`` (paired), every training image of the fixed modality with those of
    the moving modality of other patients (unpaired), or both (hybrid), without the patients of
    validation and test.

    Args:
        split: ``train``, ``val`` or ``test``.
        root: Folder of the data set.
        prepare: Makes a pair of two cases.
        use: Which of the data to use where provided: ``label``, ``mask``, and as points the first
            of ``landmarks`` and ``keypoints``, in the order given here, that both images have.
        pairings: ``paired``, ``unpaired`` or ``hybrid``; null: what the file says.

    Raises:
        UserError: The json lacks something, or an image has not the shape that it promises.
    """
    if unknown := sorted(set(use) - set(PROVIDED)):
        raise UserError(f"use: '{unknown[0]}' is unknown; choose from {', '.join(PROVIDED)}.")
    release = Release.read(root)
    if split == "train":
        pairs = release.training(pairings or release["pairings"])
    else:
        pairs = release.validation if split == "val" else release.test or release.validation
    cases = {}
    for image in sorted({image for pair in pairs for image in pair}):
        check_shape(release, image)
        cases[image] = case(release, image, use)
    matched = [with_points(release, pair, use, cases[pair[0]], cases[pair[1]]) for pair in pairs]
    return CasePairs(matched, prepare)


def check_shape(release: Release, image: str) -> None:
    """Compare the shape in the image's header with ``tensorImageShape``.

    Raises:
        UserError: It differs, or the file is missing or damaged.
    """
    path, promised = release.folder / image, release.shape(image)
    try:
        shape = nibabel.load(path).shape  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file, named in {release.path}, is missing.") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read as an image; replace it.") from error
    if shape != promised:
        raise UserError(
            f"{path}: its shape {shape} differs from {promised}, which 'tensorImageShape' in "
            f"{release.path} promises."
        )


def case(release: Release, image: str, use: Sequence[str]) -> Case:
    """An image with the label map and the mask named beside it or lying in their folders."""

    def provided(what: str) -> Path | None:
        named = release.entries.get(image, {}).get(what)
        path = release.folder / (named or image.replace("images", f"{what}s", 1))
        return path if what in use and (named or path.is_file()) else None

    path = release.folder / image
    return Case(stem(image), path, labels=provided("label"), mask=provided("mask"))


def with_points(
    release: Release, pair: Images, use: Sequence[str], fixed: Case, moving: Case
) -> tuple[Case, Case]:
    """The two cases with points of both; only in a pair that the json lists do they correspond."""
    if pair not in release.matched:
        return fixed, moving
    kinds = [kind for kind in use if kind in POINTS]
    folders = [folder for kind in kinds for folder in point_folders(release, pair, kind)]
    if folders:
        fixed, moving = (
            replace(c, points=Points(folders[0] / f"{c.name}.csv")) for c in (fixed, moving)
        )
    return fixed, moving


def point_folders(release: Release, pair: Images, kind: str) -> list[Path]:
    """The folders named beside both images, or else those in which both have a file.

    Where an image belongs to two pairs there are two, such as ``keypoints01Tr`` for the first
    follow-up and ``keypoints02Tr`` for the second, and only one of them is common to a pair.
    """
    fixed, moving = (release.entries.get(image, {}) for image in pair)
    named = [
        (release.folder / fixed[key]).parent
        for key in sorted(fixed.keys() & moving.keys())
        if key.startswith(kind)
    ]
    return named or [
        folder
        for folder in sorted(release.folder.glob(f"{kind}*"))
        if all((folder / f"{stem(image)}.csv").is_file() for image in pair)
    ]
