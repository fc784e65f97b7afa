"""What a registration leaves behind, each file whole or not there."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import nibabel
import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from regnet_lab.data.io.cases import Scan
from regnet_lab.errors import UserError
from regnet_lab.registration.pipeline import Answer, points_in_fixed, points_in_moving, warped
from regnet_lab.registration.quality import Score, picture
from regnet_lab.spatial import coordinates, write_transforms
from regnet_lab.spatial.writers import quiet

AXES = ("x", "y", "z")


@contextmanager
def delivered(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into, whose files are put there in the end.

    If the block fails nothing is left behind, and what was there before is as it was.

    Raises:
        UserError: It cannot be written to, or is full.
    """
    aside = folder.parent / f".{folder.name}.{uuid4().hex}.part"
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        for file in sorted(aside.iterdir()):
            os.replace(file, folder / file.name)
    except (OSError, RuntimeError) as error:  # SimpleITK's are the latter
        raise UserError(
            f"{folder} cannot be written ({reason_of(error)}): choose another folder or make room."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # it holds what was delivered
                path.rmdir()


def reason_of(error: Exception) -> str:
    """Why, in the system's words, or in ITK's without its addresses."""
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
    return re.sub(r"^ITK ERROR: |\(0x[0-9a-f]+\)", "", reason)


def write_image(path: Path, array: NDArray, affine: coordinates.Matrix) -> None:
    """An image of any dtype in its place, in the format the name says."""
    if path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(coordinates.to_nifti(array, affine), path)
    else:
        with quiet():
            sitk.WriteImage(coordinates.to_image(array, affine), str(path), True)


def write_points(path: Path, points: NDArray, affine: coordinates.Matrix, space: str) -> None:
    """Landmarks in voxels (N, D) as a CSV in ``space``: voxel, ras or lps."""
    if space != "voxel":
        points = coordinates.voxel_to_world(affine, points)
        points = coordinates.flip_points(points) if space == "lps" else points
    names = AXES[: points.shape[1]]
    pd.DataFrame(points, columns=names).to_csv(path, index=False, float_format="%.6f")


def write_outcome(
    folder: Path,
    answer: Answer,
    fixed: Scan,
    moving: Scan,
    original: NDArray,
    sheet: Score,
    formats: Iterable[str] = ("itk",),
    suffix: str = ".nii.gz",
    points_space: str = "voxel",
) -> None:
    """Write images, landmarks, transforms and the quality sheet.

    Args:
        folder: Where; it must exist.
        answer: The registration.
        fixed: What was registered onto.
        moving: What was registered.
        original: The moving image in its own dtype and intensities.
        sheet: Its quality.
        formats: Of transforms, see :func:`regnet_lab.spatial.write_transforms`.
        suffix: Of images.
        points_space: Of landmarks.
    """
    found = answer.deformation
    write_image(folder / f"warped{suffix}", warped(original, found), fixed.affine)
    if moving.labels is not None:
        labels = warped(moving.labels, found, linear=False)
        write_image(folder / f"warped_labels{suffix}", labels, fixed.affine)
    if fixed.points is not None:
        there = points_in_moving(found, fixed.points)
        write_points(folder / "fixed_points_in_moving.csv", there, moving.affine, points_space)
    if moving.points is not None:
        home = points_in_fixed(found, moving.points)
        write_points(folder / "moving_points_in_fixed.csv", home, fixed.affine, points_space)
    write_transforms(folder, found, formats)
    text = json.dumps(tidy(sheet), indent=2, default=float)
    (folder / "quality.json").write_text(text, encoding="utf-8")
    picture(answer).savefig(folder / "quality.png")


def tidy(value: object) -> object:
    """Numbers and containers as JSON has them, which knows no NaN."""
    if isinstance(value, dict):
        return {str(key): tidy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tidy(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
