"""One pair from files to files: read, register, write warped labels; against elastix and ANTs.

``python benchmarks/pair.py``.  A synthetic pair of 96 x 112 x 96 voxels with 35 labels and a smooth
displacement; each method in its own process, with the same number of threads.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import nibabel
import numpy as np
import torch
from metrics import cells
from scipy.ndimage import gaussian_filter

from regnet_lab import metrics, ops

SHAPE = (96, 112, 96)
FILES = ("fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz")
OURS = [
    str(harness.ROOT / "register.py"),
    *(f"{f.removesuffix('.nii.gz')}={f}" for f in FILES),
    "output_dir=registered",
]


def write_pair(folder: Path) -> None:
    """Write textured cells with fixed(x) = moving(x + u(x)) and noise on both."""
    rng = np.random.default_rng(0)
    labels = cells(SHAPE)
    texture = gaussian_filter(rng.normal(size=SHAPE), 1.5)
    grey = rng.uniform(0.3, 1, 36)[labels] * (labels > 0)
    moving = grey + 0.1 * texture / texture.std() * (labels > 0)
    u = np.stack([gaussian_filter(rng.normal(size=SHAPE), 10) for _ in SHAPE])
    field = torch.from_numpy(2.0 * u / np.linalg.norm(u, axis=0).mean())[None]
    volumes = [torch.from_numpy(v)[None, None] for v in (moving, labels)]
    fixed = ops.warp(volumes[0], field)[0, 0].numpy()
    fixed_labels = ops.warp(volumes[1], field, "nearest")[0, 0].numpy()
    noisy = [v + 0.02 * rng.normal(size=SHAPE) for v in (fixed, moving)]
    for name, volume in zip(FILES, [*noisy, fixed_labels, labels], strict=True):
        kind = np.uint8 if "labels" in name else np.float32
        nibabel.save(nibabel.Nifti1Image(volume.astype(kind), np.eye(4)), folder / name)


def elastix() -> None:
    """Register by B-splines: default parameter map, 4 levels, final spacing 8 mm."""
    import itk

    fixed, moving = (itk.imread(name, itk.F) for name in FILES[:2])
    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap(parameters.GetDefaultParameterMap("bspline", 4, 8.0))
    warped, transform = itk.elastix_registration_method(fixed, moving, parameters)
    itk.imwrite(warped, "warped.nii.gz")
    transform.SetParameter("FinalBSplineInterpolationOrder", "0")
    labels = itk.transformix_filter(itk.imread(FILES[3], itk.F), transform)
    itk.imwrite(labels, "warped_labels.nii.gz")


def ants() -> None:
    """Register by SyNOnly with its defaults: mutual information, 40, 20 and 0 iterations."""
    import ants

    fixed, moving, _, labels = (ants.image_read(name) for name in FILES)
    registration = ants.registration(fixed, moving, "SyNOnly")
    ants.image_write(registration["warpedmovout"], "warped.nii.gz")
    carried = ants.apply_transforms(fixed, labels, registration["fwdtransforms"], "nearestNeighbor")
    ants.image_write(carried, "warped_labels.nii.gz")


METHODS: dict[str, Callable[[], None]] = {"elastix": elastix, "ants": ants}
COMMANDS = {
    "ours, alignment and instance optimisation": OURS,
    "ours, instance optimisation": [*OURS, "align=identity"],
    "elastix B-spline": [__file__, "--method", "elastix"],
    "ANTs SyNOnly": [__file__, "--method", "ants"],
}


def measured(name: str, command: list[str], folder: Path, threads: int) -> harness.Row:
    """Run a method in the folder of the pair and score the labels it wrote."""
    answer = folder / ("registered" if command[0] == OURS[0] else ".") / "warped_labels.nii.gz"
    answer.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    thread_limits = {
        "OMP_NUM_THREADS": str(threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    shell = [sys.executable, *command]
    shell += [f"threads={threads}", "device=cpu"] if command[0] == OURS[0] else []
    began = time.perf_counter()
    done = subprocess.run(
        shell,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(harness.ROOT), **thread_limits},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row: harness.Row = {"method": name, "wall_s": wall, "cpu_s": cpu}
    if not answer.is_file():
        return row | {"failed": (done.stderr.strip().splitlines() or ["no labels written"])[-1]}
    return row | {"dice": dice(folder, answer)}


def dice(folder: Path, answer: Path) -> float:
    """Return the mean over the labels."""
    volumes = [np.asarray(nibabel.load(p).dataobj) for p in (folder / FILES[2], answer)]
    fixed, warped = (np.rint(volume).astype(np.int64) for volume in volumes)
    return float(np.nanmean([*metrics.dice(fixed, fixed, warped).values()]))


def main() -> None:
    """Run all methods, or one in this folder."""
    args = harness.options(__doc__, method="")
    if args.method:
        METHODS[args.method]()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pair(folder)
        rows = [{"method": "none", "dice": dice(folder, folder / FILES[3])}]
        for method, command in COMMANDS.items():
            rows.append(measured(method, command, folder, args.threads))
            print(rows[-1], flush=True)
    harness.save("pair", args, rows)


if __name__ == "__main__":
    main()
