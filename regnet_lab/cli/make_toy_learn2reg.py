"""Write toy versions of the Learn2Reg 2020 tasks 2 and 3, made of phantoms, in their layout.

``python -m regnet_lab.cli.make_toy_learn2reg data`` writes ``data/learn2reg2020/task_02`` and
``task_03``, which can be trained on and evaluated like the real ones (``data=task02
data_root=data``); with a real ``task_04`` beside them, ``data=tasks234`` runs.  They show that
training works, but say nothing about lungs or abdomens.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

NUM_ORGANS = 13  # labels of task 3
SHAPES = {"task_02": (48, 40, 52), "task_03": (48, 40, 64)}
SPACING = {"task_02": (7.0, 5.0, 7.0), "task_03": (8.0, 8.0, 8.0)}  # the real fields of view
AIR_HU, HU_RANGE = -1000, 1400  # Hounsfield units of 0, and from 0 to 1


def write_image(path: Path, image: Tensor, spacing: Iterable[float], dtype: DTypeLike) -> None:
    """Write an unbatched image (1, *spatial) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array: NDArray = image[0].numpy().astype(dtype)
    nibabel.save(coordinates.array_to_nifti(array, np.diag([*spacing, 1.0])), path)


def write_pairs(folder: Path, pairs: ArrayLike) -> None:
    """Write ``pairs_val.csv``, the numbers of fixed and moving cases."""
    folder.mkdir(parents=True)
    path = folder / "pairs_val.csv"
    np.savetxt(path, pairs, "%d", ",", header="fixed,moving", comments="", encoding="utf-8")


def to_hounsfield(image: Tensor) -> Tensor:
    """Map intensities in [0, 1] to Hounsfield units."""
    return AIR_HU + HU_RANGE * image


def write_task02(folder: Path, num_cases: int) -> None:
    """Write two states of one phantom per case, with masks and landmarks.

    The last fifth of the cases is for validation.
    """
    name, spacing = "task_02", SPACING["task_02"]
    first_val = num_cases - max(num_cases // 5, 1) + 1
    write_pairs(folder, [(n, n) for n in range(first_val, num_cases + 1)])
    phantoms = PhantomPairs("train", 3, SHAPES[name], num_cases, seed=2)
    for n in range(1, num_cases + 1):
        pair: dict[str, Any] = dict(phantoms[n - 1])
        for side, phase in (("fixed", "exp"), ("moving", "insp")):
            file = f"case_{n:03d}_{phase}.nii.gz"
            image, mask = pair[side], pair[f"{side}_labels"] > 0
            write_image(folder / "training/scans" / file, to_hounsfield(image), spacing, np.int16)
            write_image(folder / "training/lungMasks" / file, mask, spacing, np.uint8)
        landmarks = np.concatenate([pair["fixed_points"], pair["moving_points"]], 1)
        (folder / "training/lms").mkdir(exist_ok=True)
        np.savetxt(folder / f"training/lms/case_{n:03d}.txt", landmarks, "%.3f", ",")


def write_task03(folder: Path, num_cases: int) -> None:
    """Write different phantoms with thirteen labels.

    All pairs of the last fifth of the cases are for validation.
    """
    name, spacing = "task_03", SPACING["task_03"]
    val_cases = range(num_cases - max(num_cases // 5, 2) + 1, num_cases + 1)
    write_pairs(folder, [(a, b) for a in val_cases for b in val_cases if a != b])
    phantoms = PhantomPairs("train", 3, SHAPES[name], num_cases, seed=3, num_labels=NUM_ORGANS)
    for n in range(1, num_cases + 1):
        pair = phantoms[n - 1]
        image, labels = folder / f"Training/img/img{n:04d}", folder / f"Training/label/label{n:04d}"
        write_image(image.with_suffix(".nii.gz"), to_hounsfield(pair["fixed"]), spacing, np.int16)
        write_image(labels.with_suffix(".nii.gz"), pair["fixed_labels"], spacing, np.uint8)


def write_toy_data(root: Path, num_cases: int = 10) -> None:
    """Write both tasks below ``root``."""
    if num_cases < 4:
        raise UserError(f"cases={num_cases}: give at least 4, so that some are left for training.")
    folders = [root / "learn2reg2020" / name for name in ("task_02", "task_03")]
    for folder in folders:
        if folder.exists():
            raise UserError(f"{folder}: exists already; name another folder or remove it.")
    write_task02(folders[0], num_cases)
    write_task03(folders[1], num_cases)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="folder to write to; use it as data_root")
    parser.add_argument(
        "--cases", type=int, default=10, help="cases of each task (default: %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        write_toy_data(arguments.output, arguments.cases)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
