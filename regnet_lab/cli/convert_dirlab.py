"""DIR-Lab's lung CT, 4DCT and COPDgene, from raw files as downloaded to NIfTI with landmarks.

``python -m regnet_lab.cli.convert_dirlab <downloads> <out>`` looks for the raw images and landmark files
of the cases anywhere below ``downloads`` and writes ``<out>/<case>/<phase>.nii.gz``, landmarks in
voxels from 0 beside them and ``<out>/pairs.csv``; then ``data=dirlab`` finds them.

Raw images are int16, x fastest, slices from the head down, in HU + 1024; landmarks count from 1.
References: Castillo et al., Phys. Med. Biol. 2009 and 2013.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

OFFSET, OUTSIDE, NOTHING = 1024, -3024, -2048  # HU

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Patient:
    """What the publication says of a case; ``phases`` are those of fixed and moving image."""

    name: str
    shape: Shape
    spacing: tuple[float, float, float]
    phases: tuple[str, str]
    split: str


def _patients() -> dict[str, Patient]:
    slices4 = (94, 112, 104, 99, 106, 128, 136, 128, 128, 120)
    plane4 = (0.97, 1.16, 1.15, 1.13, 1.10, 0.97, 0.97, 0.97, 0.97, 0.97)
    slices_c = (121, 102, 126, 126, 131, 119, 112, 115, 116, 135)
    plane_c = (0.625, 0.645, 0.652, 0.590, 0.647, 0.633, 0.625, 0.586, 0.664, 0.742)
    found = {}
    for k, (n, mm) in enumerate(zip(slices4, plane4, strict=True), start=1):
        side = 256 if k <= 5 else 512
        found[f"case{k}"] = Patient(
            f"case{k}", (side, side, n), (mm, mm, 2.5), ("T00", "T50"), "test"
        )
    for k, (n, mm) in enumerate(zip(slices_c, plane_c, strict=True), start=1):
        split = "train" if k < 10 else "val"
        found[f"copd{k}"] = Patient(
            f"copd{k}", (512, 512, n), (mm, mm, 2.5), ("iBHCT", "eBHCT"), split
        )
    return found


PATIENTS = _patients()


def read_raw(path: Path, shape: Shape) -> NDArray[np.int16]:
    """A raw image as HU, the head at the end of the last axis, -2048 where nothing was measured.

    Raises:
        UserError: The file has another size.
    """
    voxels = np.fromfile(path, "<i2")
    if voxels.size != np.prod(shape):
        raise UserError(
            f"{path}: holds {voxels.size} voxels, not {' x '.join(map(str, shape))}; "
            "download it again."
        )
    hounsfield = voxels.reshape(shape[::-1]).T.astype(np.int16) - OFFSET
    hounsfield[hounsfield <= OUTSIDE] = NOTHING
    return hounsfield[..., ::-1].astype(np.int16)


def without_empty_slices(image: NDArray[np.int16]) -> tuple[NDArray[np.int16], int]:
    """The image without slices in which nothing was measured at its ends, and how many went from
    the front.
    """
    measured = np.flatnonzero((image != NOTHING).any((0, 1)))
    return image[..., measured[0] : measured[-1] + 1], int(measured[0])


def read_landmarks(path: Path, slices: int) -> NDArray[np.float64]:
    """(N, 3) voxels from 0 of the flipped image.

    Raises:
        UserError: The file is no table of three numbers.
    """
    try:
        points = np.loadtxt(path, ndmin=2)[:, :3] - 1
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{path}: is no table of x, y, z; download it again.") from error
    points[:, 2] = slices - 1 - points[:, 2]
    return points


def find(files: Iterable[Path], patient: Patient, phase: str, what: str) -> Path | None:
    """The image (``img``) or the landmarks (``txt``) of a phase among all files.

    Names differ from case to case: ``case1_T00_s.img``, ``case6_T00.img``,
    ``Case1_300_T00_xyz.txt``, ``case6_dirLab300_T00_xyz.txt``, ``copd1_iBHCT.img``,
    ``copd1_300_iBH_xyz_r1.txt``.
    """
    own = phase.removesuffix("CT")
    middle = r"_(?:dirlab)?300_" if what == "txt" else "_"
    end = r"_xyz(?:_r1)?\.txt" if what == "txt" else r"(?:CT)?(?:_s|-ssm)?\.img"
    name = re.compile(patient.name + middle + own + end, re.IGNORECASE)
    return next((file for file in files if name.fullmatch(file.name)), None)


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside a path, then rename."""
    aside = path.with_name(f"part-{path.name}")
    write(aside)
    os.replace(aside, path)


def convert(patient: Patient, files: list[Path], out: Path) -> dict[str, str] | None:
    """Write both images and landmarks of a case; its row of ``pairs.csv``, if it is there at all.

    Raises:
        UserError: A part of it is missing or damaged.
    """
    found = {(p, w): find(files, patient, p, w) for p in patient.phases for w in ("img", "txt")}
    if not any(found.values()):
        return None
    row = {"name": patient.name, "split": patient.split}
    for side, phase in zip(("fixed", "moving"), patient.phases, strict=True):
        raw, text = found[phase, "img"], found[phase, "txt"]
        if raw is None or text is None:
            kind = "image" if raw is None else "file of 300 landmarks"
            raise UserError(f"{patient.name}: the {kind} of {phase} is missing; download it, too.")
        image, first = without_empty_slices(read_raw(raw, patient.shape))
        points = read_landmarks(text, patient.shape[2]) - [0, 0, first]
        folder = out / patient.name
        folder.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-patient.spacing[0], -patient.spacing[1], patient.spacing[2], 1])
        affine[2, 3] = first * patient.spacing[2]
        volume = coordinates.to_nifti(image, affine)
        write_aside(folder / f"{phase}.nii.gz", partial(nibabel.save, volume))
        table = pd.DataFrame(points, columns=["x", "y", "z"])
        write_aside(folder / f"{phase}.csv", partial(table.to_csv, index=False))
        row[side] = f"{patient.name}/{phase}.nii.gz"
        row[f"{side}_points"] = f"{patient.name}/{phase}.csv"
    return row


def main(arguments: list[str] | None = None) -> None:
    """Convert every case that is there.

    Raises:
        UserError: There is none.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("downloads", type=Path, help="folder with the unpacked downloads")
    parser.add_argument("out", type=Path, help="folder to write, such as data/dirlab")
    given = parser.parse_args(arguments)
    files = sorted(file for file in given.downloads.rglob("*") if file.is_file())
    rows = [row for p in PATIENTS.values() if (row := convert(p, files, given.out))]
    if not rows:
        raise UserError(f"{given.downloads}: no raw image of DIR-Lab lies here.")
    write_aside(given.out / "pairs.csv", partial(pd.DataFrame(rows).to_csv, index=False))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
