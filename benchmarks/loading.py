"""Samples per second of the loader alone, against what a training step of VoxelMorph needs.

``python benchmarks/loading.py``; beside the cached loader stand nibabel.load of the same files, in
the same order, and the loader without a cache.  Data: REGNET_LAB_DATA, or else small made-up trees
in the same layouts.  Prints a table and writes outputs/benchmarks/loading.json.
"""

import itertools
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import harness
import nibabel
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from regnet_lab.config.instantiate import instantiate_config

ROOT = Path(__file__).parent.parent
DATA_SETS = ("task04", "cardiac")
COLUMNS = (
    "data",
    "memory /s",
    "folder /s",
    "uncached /s",
    "nibabel /s",
    "memory : nibabel",
    "step s",
    "training /s",
    "memory : training",
)


def save(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> None:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing[:3], 1])), path)


def write_made_up(root: Path) -> None:
    """Noise of the real sizes in the layouts of task04 and Sunnybrook."""
    rng = np.random.default_rng(0)
    task = root / "learn2reg2020" / "task_04"
    for n in range(24):
        shape = tuple(rng.integers((31, 40, 24), (43, 59, 47)))
        name = f"hippocampus_{n:03d}.nii.gz"
        image = rng.integers(0, 1000, shape).astype(np.float32)
        save(task / "Training" / "img" / name, image, (1, 1, 1))
        labels = rng.integers(0, 3, shape).astype(np.uint8)
        save(task / "Training" / "label" / name, labels, (1, 1, 1))
    (task / "pairs_val.csv").write_text("fixed,moving\n0,1\n")
    hearts = root / "cardiac_cine_sunnybrook"
    for name in ("SCD0000101", "SCD0000201", "SCD0000301"):
        cine = rng.integers(0, 500, (256, 256, 10, 20)).astype(np.int16)
        save(hearts / f"{name}_cine4d.nii.gz", cine, (1.3, 1.3, 8))
        for phase in ("ed", "es"):
            labels = rng.integers(0, 2, cine.shape[:3]).astype(np.uint8)
            save(hearts / f"{name}_{phase}_label.nii.gz", labels, (1.3, 1.3, 8))
        notes = {"patient": name, "ed": 0, "es": 8, "slices_with_both": list(range(2, 8))}
        (hearts / f"{name}.json").write_text(json.dumps(notes))


def composed(data: str, root: Path, cache: str | None) -> DictConfig:
    """The configuration of training VoxelMorph on a data set."""
    where = "null" if cache is None else cache
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(
            "train",
            [
                f"data={data}",
                "model=voxelmorph",
                f"data_root={root}",
                f"+data.dataset.prepare.cache={where}",
                "data.epoch_size=100000",
                "module.name=voxelmorph",
            ],
        )


def rate(batches: Iterable, seconds: float, per_batch: int) -> float:
    """Samples per second of an iterator, over about ``seconds`` and at least two batches."""
    iterator, count = iter(batches), 0
    next(iterator)
    began = time.perf_counter()
    while count < 2 or time.perf_counter() - began < seconds:
        next(iterator)
        count += 1
    return count * per_batch / (time.perf_counter() - began)


def loading(data: str, root: Path, cache: str | None, seconds: float) -> float:
    """Samples per second of the training loader in this process, the cache being full."""
    module = instantiate_config(composed(data, root, cache).data)
    loader = module.train_dataloader()
    listed = loader.dataset
    if cache is not None:
        for case in dict.fromkeys(itertools.chain.from_iterable(listed.case_pairs)):
            listed.prepare.load_side(case, case)
    return rate(loader, seconds, module.batch_size)


def load_with_nibabel(data: str, root: Path, seconds: float) -> float:
    """Pairs per second when nibabel reads the voxels of their files, and nothing else is done."""
    loader = instantiate_config(composed(data, root, None).data).train_dataloader()

    def read() -> Iterator:
        for index in loader.sampler:
            cases = loader.dataset.case_pairs[index]
            paths = [p for case in cases for p in (case.image, case.labels) if p]
            yield [np.asarray(nibabel.load(path).dataobj) for path in paths]

    return rate(read(), seconds, 1)


def step_seconds(data: str, root: Path, seconds: float) -> tuple[float, int]:
    """Seconds of a training step of VoxelMorph with LNCC, and its pairs."""
    cfg = composed(data, root, "memory")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module, source = instantiate_config(cfg.module).to(device), instantiate_config(cfg.data)
    batch = next(iter(source.train_dataloader()))
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    optimizer = torch.optim.Adam(module.parameters())

    def steps() -> Iterator:
        while True:
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
            yield next(module.parameters()).flatten()[0].item()  # waits for the device

    return 1 / rate(steps(), seconds, 1), source.batch_size


def measure(data: str, root: Path, seconds: float) -> dict[str, float | str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        memory, disk, uncached = (
            loading(data, root, cache, seconds) for cache in ("memory", folder, None)
        )
    nibabel_only = load_with_nibabel(data, root, seconds)
    step, batch = step_seconds(data, root, seconds)
    training = batch / step
    values = (
        memory,
        disk,
        uncached,
        nibabel_only,
        memory / nibabel_only,
        step,
        training,
        memory / training,
    )
    return dict(zip(COLUMNS, (data, *values), strict=True))


def main() -> None:
    """Measure both data sets."""
    arguments = harness.options(__doc__)
    warnings.filterwarnings("ignore", "You are trying to `self.log")
    data_root = os.environ.get("REGNET_LAB_DATA")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data_root or folder)
        if not data_root:
            write_made_up(root)
        rows = [measure(data, root, arguments.seconds) for data in DATA_SETS]
    print(" | ".join(COLUMNS))
    for row in rows:
        cells = (v if isinstance(v, str) else f"{v:.4g}" for v in row.values())
        print(" | ".join(c.ljust(len(name)) for c, name in zip(cells, COLUMNS, strict=True)))
    harness.save("loading", arguments, rows, data="real" if data_root else "made up")


if __name__ == "__main__":
    main()
