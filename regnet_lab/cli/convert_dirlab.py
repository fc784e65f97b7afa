"""Convert DIR-Lab's lung CT (4DCT and COPDgene) from the downloaded raw files to NIfTI.

``python -m regnet_lab.cli.convert_dirlab <downloads> <output>`` searches ``downloads`` for the raw
images and landmark files of the cases.  It writes ``<output>/<case>/<phase>.nii.gz``, landmarks in
voxels from 0 as ``<phase>.csv`` and ``<output>/pairs.csv``, which ``data=dirlab`` reads.

Raw images are int16 in HU + 1024, x fastest, slices from head to feet; landmarks count from 1.
References: Castillo et al., Phys. Med. Biol. 2009 and 2013.
"""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.spatial.writers import write_nifti
from regnet_lab.utils.atomic_io import write_text

RAW_OFFSET = 1024  # raw value of 0 HU
OUTSIDE_SCAN = -3024  # HU of voxels outside the scanned circle, and below
UNMEASURED = -2048  # HU that replaces them

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class DIRLabCase:
    """The published properties of a case."""

    name: str  # such as case1 or copd1
    shape: Shape  # voxels along x, y and z
    spacing: tuple[float, float, float]  # mm
    phases: tuple[str, str]  # of the fixed and the moving image
    split: str  # train, val or test


def _list_cases() -> dict[str, DIRLabCase]:
    """Return the ten 4DCT and the ten COPDgene cases by name."""
    slices_4dct = (94, 112, 104, 99, 106, 128, 136, 128, 128, 120)
    spacing_4dct = (0.97, 1.16, 1.15, 1.13, 1.10, 0.97, 0.97, 0.97, 0.97, 0.97)
    slices_copd = (121, 102, 126, 126, 131, 119, 112, 115, 116, 135)
    spacing_copd = (0.625, 0.645, 0.652, 0.590, 0.647, 0.633, 0.625, 0.586, 0.664, 0.742)
    cases = []
    for k, (n, mm) in enumerate(zip(slices_4dct, spacing_4dct, strict=True), start=1):
        side, phases = 256 if k <= 5 else 512, ("T00", "T50")
        cases.append(DIRLabCase(f"case{k}", (side, side, n), (mm, mm, 2.5), phases, "test"))
    for k, (n, mm) in enumerate(zip(slices_copd, spacing_copd, strict=True), start=1):
        split, phases = "train" if k < 10 else "val", ("iBHCT", "eBHCT")
        cases.append(DIRLabCase(f"copd{k}", (512, 512, n), (mm, mm, 2.5), phases, split))
    return {case.name: case for case in cases}


DIRLAB_CASES = _list_cases()


def read_raw_image(path: Path, shape: Shape) -> NDArray[np.int16]:
    """Read a raw image in HU, flipped so that the head is at the end of the last axis.

    Voxels that were not measured become -2048 HU.
    """
    voxels = np.fromfile(path, "<i2")
    if voxels.size != np.prod(shape):
        raise UserError(
            f"{path}: holds {voxels.size} voxels, not {' x '.join(map(str, shape))}; "
            "download it again."
        )
    hounsfield = voxels.reshape(shape[::-1]).T.astype(np.int16) - RAW_OFFSET
    hounsfield[hounsfield <= OUTSIDE_SCAN] = UNMEASURED
    return hounsfield[..., ::-1].astype(np.int16)


def remove_empty_slices(image: NDArray[np.int16]) -> tuple[NDArray[np.int16], int]:
    """Remove unmeasured slices at both ends of the last axis; return how many at its start, too."""
    measured = np.flatnonzero((image != UNMEASURED).any((0, 1)))
    return image[..., measured[0] : measured[-1] + 1], int(measured[0])


def read_landmarks(path: Path, slices: int) -> NDArray[np.float64]:
    """Read landmarks (N, 3) in voxels from 0 of the flipped image."""
    try:
        points = np.loadtxt(path, ndmin=2)[:, :3] - 1
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{path}: is not a table of x, y, z; download it again.") from error
    points[:, 2] = slices - 1 - points[:, 2]
    return points


def find_file(files: Iterable[Path], case: DIRLabCase, phase: str, kind: str) -> Path | None:
    """Find the image (``img``) or the landmarks (``txt``) of a phase among all files.

    Names differ from case to case: ``case1_T00_s.img``, ``case6_T00.img``,
    ``Case1_300_T00_xyz.txt``, ``case6_dirLab300_T00_xyz.txt``, ``copd1_iBHCT.img``,
    ``copd1_300_iBH_xyz_r1.txt``.
    """
    separator = r"_(?:dirlab)?300_" if kind == "txt" else "_"
    ending = r"_xyz(?:_r1)?\.txt" if kind == "txt" else r"(?:CT)?(?:_s|-ssm)?\.img"
    pattern = case.name + separator + phase.removesuffix("CT") + ending
    name = re.compile(pattern, re.IGNORECASE)
    return next((file for file in files if name.fullmatch(file.name)), None)


def convert_case(case: DIRLabCase, files: list[Path], output: Path) -> dict[str, str] | None:
    """Write both images and the landmarks of a case; return its row of ``pairs.csv``.

    None if no file of the case was downloaded.
    """
    case_files = {
        (phase, kind): find_file(files, case, phase, kind)
        for phase in case.phases
        for kind in ("img", "txt")
    }
    if not any(case_files.values()):
        return None
    row = {"name": case.name, "split": case.split}
    for side, phase in zip(("fixed", "moving"), case.phases, strict=True):
        raw_file, landmark_file = case_files[phase, "img"], case_files[phase, "txt"]
        if raw_file is None or landmark_file is None:
            kind = "image" if raw_file is None else "file of 300 landmarks"
            raise UserError(f"{case.name}: the {kind} of {phase} is missing; download it, too.")
        image, first = remove_empty_slices(read_raw_image(raw_file, case.shape))
        points = read_landmarks(landmark_file, case.shape[2]) - [0, 0, first]
        affine = np.diag([-case.spacing[0], -case.spacing[1], case.spacing[2], 1])
        affine[2, 3] = first * case.spacing[2]
        row[side] = f"{case.name}/{phase}.nii.gz"
        row[f"{side}_points"] = f"{case.name}/{phase}.csv"
        write_nifti(output / row[side], image, affine)
        table = pd.DataFrame(points, columns=["x", "y", "z"])
        write_text(output / row[f"{side}_points"], table.to_csv(index=False))
    return row


def main(arguments: list[str] | None = None) -> None:
    """Convert every downloaded case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("downloads", type=Path, help="folder with the unpacked downloads")
    parser.add_argument("output", type=Path, help="folder to write to, such as data/dirlab")
    options = parser.parse_args(arguments)
    files = sorted(file for file in options.downloads.rglob("*") if file.is_file())
    cases = DIRLAB_CASES.values()
    rows = [row for case in cases if (row := convert_case(case, files, options.output))]
    if not rows:
        raise UserError(f"{options.downloads}: contains no raw image of DIR-Lab.")
    write_text(options.output / "pairs.csv", pd.DataFrame(rows).to_csv(index=False))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
