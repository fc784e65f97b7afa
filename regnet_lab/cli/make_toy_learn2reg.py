"""Small stand-ins for the Learn2Reg 2020 tasks 2 and 3, made of phantoms, in the published layout.

``python -m regnet_lab.cli.make_toy_learn2reg data`` writes ``data/learn2reg2020/task_02`` and
``task_03``, which train and are judged as the real ones are (``data=task02 data_root=data``); a
real ``task_04`` beside them lets ``data=tasks234`` run.  They show that training works, nothing
about lungs or abdomens.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from regnet_lab.data.synthesis.phantom_pairs import Synthetic
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

ORGANS = 13  # labels of task 3
SHAPES = {"task_02": (48, 40, 52), "task_03": (48, 40, 64)}
SPACING = {"task_02": (7.0, 5.0, 7.0), "task_03": (8.0, 8.0, 8.0)}  # the real fields of view
AIR, BRIGHT = -1000, 1400  # Hounsfield units of 0, and of 1 above it


def write(path: Path, values: Tensor, spacing: Iterable[float], kind: DTypeLike) -> None:
    """Write an unbatched image (1, *spatial) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array: NDArray = values[0].numpy().astype(kind)
    nibabel.save(coordinates.to_nifti(array, np.diag([*spacing, 1.0])), path)


def write_pairs(folder: Path, pairs: ArrayLike) -> None:
    """Write ``pairs_val.csv``."""
    folder.mkdir(parents=True)
    path = folder / "pairs_val.csv"
    np.savetxt(path, pairs, "%d", ",", header="fixed,moving", comments="", encoding="utf-8")


def hounsfield(image: Tensor) -> Tensor:
    """From [0, 1] to what a CT might show."""
    return AIR + BRIGHT * image


def write_task02(folder: Path, cases: int) -> None:
    """Two states of one phantom per case, with masks and landmarks; the last fifth is held out."""
    name, spacing = "task_02", SPACING["task_02"]
    write_pairs(folder, [(n, n) for n in range(cases - max(cases // 5, 1) + 1, cases + 1)])
    listed = Synthetic("train", 3, SHAPES[name], cases, seed=2)
    for n in range(1, cases + 1):
        pair = listed[n - 1]
        for side, phase in (("fixed", "exp"), ("moving", "insp")):
            file = f"case_{n:03d}_{phase}.nii.gz"
            image: Tensor = pair[side]  # type: ignore[literal-required]
            labels: Tensor = pair[f"{side}_labels"]  # type: ignore[literal-required]
            write(folder / "training/scans" / file, hounsfield(image), spacing, np.int16)
            write(folder / "training/lungMasks" / file, labels > 0, spacing, np.uint8)
        marks = np.concatenate([pair["fixed_points"], pair["moving_points"]], 1)
        (folder / "training/lms").mkdir(exist_ok=True)
        np.savetxt(folder / f"training/lms/case_{n:03d}.txt", marks, "%.3f", ",")


def write_task03(folder: Path, cases: int) -> None:
    """Different phantoms with thirteen labels; every pair of the last fifth is held out."""
    name, spacing = "task_03", SPACING["task_03"]
    held_out = range(cases - max(cases // 5, 2) + 1, cases + 1)
    write_pairs(folder, [(a, b) for a in held_out for b in held_out if a != b])
    listed = Synthetic("train", 3, SHAPES[name], cases, seed=3, labels=ORGANS)
    for n in range(1, cases + 1):
        pair = listed[n - 1]
        image, labels = folder / f"Training/img/img{n:04d}", folder / f"Training/label/label{n:04d}"
        write(image.with_suffix(".nii.gz"), hounsfield(pair["fixed"]), spacing, np.int16)
        write(labels.with_suffix(".nii.gz"), pair["fixed_labels"], spacing, np.uint8)


def generate(root: Path, cases: int = 10) -> None:
    """Write both trees below ``root``.

    Raises:
        UserError: One is there already, or there are too few cases to train on.
    """
    if cases < 4:
        raise UserError(f"cases={cases}: at least 4 are needed to train on some of them.")
    folders = [root / "learn2reg2020" / name for name in ("task_02", "task_03")]
    for folder in folders:
        if folder.exists():
            raise UserError(f"{folder}: is there already; name another folder or remove it.")
    write_task02(folders[0], cases)
    write_task03(folders[1], cases)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="data_root to write below")
    parser.add_argument("--cases", type=int, default=10, help="of each task")
    arguments = parser.parse_args()
    try:
        generate(arguments.folder, arguments.cases)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
