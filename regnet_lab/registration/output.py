"""Writing of registration results, all files or none."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.errors import UserError
from regnet_lab.registration.mapping import map_points_to_fixed, map_points_to_moving, warp_array
from regnet_lab.registration.pipeline import RegistrationResult
from regnet_lab.registration.quality import QualityReport, draw_result
from regnet_lab.spatial import coordinates, write_transforms
from regnet_lab.spatial.writers import write_image


@contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved to ``folder`` in the end.

    If the block fails, ``folder`` is as before; a folder created here is removed again.
    """
    temporary = folder.parent / f".{folder.name}.{uuid4().hex}.part"
    created = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}): choose another folder or "
            "make room."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in created:
            with suppress(OSError):  # not empty: it holds the results
                path.rmdir()


def write_points(path: Path, points: NDArray, affine: coordinates.Matrix, space: str) -> None:
    """Write landmarks (N, D) in voxels as a CSV in ``space``: voxel, ras or lps."""
    if space != "voxel":
        points = coordinates.voxel_to_world(affine, points)
        points = coordinates.flip_points(points) if space == "lps" else points
    columns = ["x", "y", "z"][: points.shape[1]]
    pd.DataFrame(points, columns=columns).to_csv(path, index=False, float_format="%.6f")


def write_results(
    folder: Path,
    result: RegistrationResult,
    fixed: LoadedCase,
    moving: LoadedCase,
    original: NDArray,
    report: QualityReport,
    formats: Iterable[str],
    suffix: str,
    points_space: str,
) -> None:
    """Write images, landmarks, transforms and the quality report into an existing folder.

    ``original`` is the moving image with its own dtype and intensities.  Transforms are written in
    ``formats`` (:func:`regnet_lab.spatial.write_transforms`), images in the format of ``suffix``,
    and landmarks in the coordinates ``points_space``: voxel, ras or lps.
    """
    deformation = result.deformation
    write_image(folder / f"warped{suffix}", warp_array(original, deformation), fixed.affine)
    if moving.labels is not None:
        labels = warp_array(moving.labels, deformation, linear=False)
        write_image(folder / f"warped_labels{suffix}", labels, fixed.affine)
    if fixed.points is not None:
        points = map_points_to_moving(deformation, fixed.points)
        write_points(folder / "fixed_points_in_moving.csv", points, moving.affine, points_space)
    if moving.points is not None:
        points = map_points_to_fixed(deformation, moving.points)
        write_points(folder / "moving_points_in_fixed.csv", points, fixed.affine, points_space)
    write_transforms(folder, deformation, formats)
    text = json.dumps(to_jsonable(report), indent=2, default=float)
    (folder / "quality.json").write_text(text, encoding="utf-8")
    draw_result(result).savefig(folder / "quality.png")


def to_jsonable(value: object) -> object:
    """Replace non-finite numbers by None and keys by strings, as JSON requires."""
    if isinstance(value, dict):
        return {str(key): to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
