"""Learn2Reg 2021 and later: any folder with a ``dataset.json`` (releases 1.1 and 2).

The file lists images as ``./imagesTr/TASK_patient_modality.nii.gz``, pairs of them, and their
annotations: ``labelsTr`` and ``masksTr`` with the same file names, ``keypointsTr`` and
``landmarksTr`` with ``.csv`` (voxels, no header; the json says ``.nii.gz``).  The patients of the
validation pairs lie among the training images.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import nibabel
from nibabel.spatialimages import SpatialImage

from regnet_lab.data.case import Case, CasePair, LandmarkFile
from regnet_lab.data.datasets.base import CasePairs, Prepare
from regnet_lab.data.datasets.learn2reg_json import DatasetDescription, ImagePair, get_stem
from regnet_lab.data.io.images import IMAGE_READ_ERRORS
from regnet_lab.errors import UserError

LANDMARK_KINDS = ("landmarks", "keypoints")
ANNOTATIONS = ("label", "mask", *LANDMARK_KINDS)


def list_learn2reg_pairs(
    split: str,
    root: str,
    prepare: Prepare,
    annotations: Sequence[str] = ANNOTATIONS,
    pairings: str | None = None,
) -> CasePairs:
    """List the pairs of a split.

    Validation pairs are ``registration_val``; test pairs ``registration_test`` or
    ``test_paired_images``, or the validation pairs where neither has any.  Training pairs are
    ``training_paired_images`` (``pairings=paired``), every training image of the fixed modality
    with those of the moving modality of other patients (``unpaired``), or both (``hybrid``),
    without the patients of validation and test; null: what the file says.

    ``annotations`` are used where provided: ``label``, ``mask``, and as landmarks the first of
    ``landmarks`` and ``keypoints``, in the order given here, that both images have.
    """
    if unknown := sorted(set(annotations) - set(ANNOTATIONS)):
        raise UserError(
            f"annotations: '{unknown[0]}' is unknown; choose from {', '.join(ANNOTATIONS)}."
        )
    description = DatasetDescription.read(root)
    if split == "train":
        pairs = description.list_training_pairs(pairings or description["pairings"])
    elif split == "val":
        pairs = description.validation
    else:
        pairs = description.test or description.validation
    cases = {}
    for image in sorted({image for pair in pairs for image in pair}):
        check_shape(description, image)
        cases[image] = make_case(description, image, annotations)
    case_pairs = [
        add_landmarks(description, (fixed, moving), annotations, (cases[fixed], cases[moving]))
        for fixed, moving in pairs
    ]
    return CasePairs(case_pairs, prepare)


def check_shape(description: DatasetDescription, image: str) -> None:
    """Compare the shape in an image's header with ``tensorImageShape``."""
    path, stated_shape = description.folder / image, description.get_shape(image)
    try:
        shape = cast(SpatialImage, nibabel.load(path)).shape
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file, named in {description.path}, is missing.") from error
    except IMAGE_READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as an image; replace it.") from error
    if shape != stated_shape:
        raise UserError(
            f"{path}: its shape {shape} differs from {stated_shape} of 'tensorImageShape' in "
            f"{description.path}."
        )


def make_case(description: DatasetDescription, image: str, annotations: Sequence[str]) -> Case:
    """Return the case of an image, label map and mask named in the json or in their folders."""

    def find_annotation(kind: str) -> Path | None:
        named = description.entries.get(image, {}).get(kind)
        path = description.folder / (named or image.replace("images", f"{kind}s", 1))
        return path if kind in annotations and (named or path.is_file()) else None

    path = description.folder / image
    labels, mask = find_annotation("label"), find_annotation("mask")
    return Case(get_stem(image), path, labels=labels, mask=mask)


def add_landmarks(
    description: DatasetDescription, pair: ImagePair, annotations: Sequence[str], cases: CasePair
) -> CasePair:
    """Return two cases with their landmarks, which correspond only in pairs that the json lists."""
    if pair not in description.corresponding_pairs:
        return cases
    kinds = [kind for kind in annotations if kind in LANDMARK_KINDS]
    folders = [f for kind in kinds for f in find_landmark_folders(description, pair, kind)]
    if not folders:
        return cases
    fixed, moving = (replace(c, points=LandmarkFile(folders[0] / f"{c.name}.csv")) for c in cases)
    return fixed, moving


def find_landmark_folders(
    description: DatasetDescription, pair: ImagePair, kind: str
) -> list[Path]:
    """Find the folders named for both images, or else those in which both have a file.

    An image that belongs to two pairs has two, such as ``keypoints01Tr`` for the first follow-up
    and ``keypoints02Tr`` for the second; a pair has only one of them in common.
    """
    fixed, moving = (description.entries.get(image, {}) for image in pair)
    named = [
        (description.folder / fixed[key]).parent
        for key in sorted(fixed.keys() & moving.keys())
        if key.startswith(kind)
    ]
    return named or [
        folder
        for folder in sorted(description.folder.glob(f"{kind}*"))
        if all((folder / f"{get_stem(image)}.csv").is_file() for image in pair)
    ]
