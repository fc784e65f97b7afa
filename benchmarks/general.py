"""The pretrained networks on real images that they were not trained on.

REGNET_LAB_DATA=... python benchmarks/general.py <folder> [set ...] [method ...] [-- overrides]

For every set and method: Dice or landmark error by the images' headers, after the affine stage, and
after registration by the network, by network and instance optimisation, by instance optimisation
alone, and by each classical method whose package is installed; percentage of folded voxels; CPU
seconds of one thread.  Runs as ``register.py pairs=`` does.
"""

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from hydra import compose, initialize_config_dir

from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.errors import MissingPackageError
from regnet_lab.registration.api import build_pipeline
from regnet_lab.registration.jobs import build_job
from regnet_lab.registration.quality import (
    measure_landmark_error,
    measure_overlap,
    measure_regularity,
)

Row = dict[str, str]
DATA = Path(os.environ.get("REGNET_LAB_DATA", "data"))
CLASSICAL = ("demons", "convex_adam", "elastix_bspline", "ants_syn")
WAYS = {
    "network": ["~optimizer"],
    "network + instance": [],
    "instance alone": ["model=identity"],
    **{way: [f"model={way}", "~optimizer"] for way in CLASSICAL},
}


def task04(_: Path) -> Iterator[Row]:
    """Hippocampi of different subjects: the 40 pairs."""
    root = DATA / "learn2reg2020/task_04"
    with (root / "pairs_val.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            names = {side: f"hippocampus_{int(row[side]):03d}.nii.gz" for side in row}
            images = {side: str(root / "Training/img" / name) for side, name in names.items()}
            labels = {f"{s}_labels": str(root / "Training/label" / n) for s, n in names.items()}
            yield images | labels | {"name": f"{row['fixed']}-{row['moving']}"}


def sunnybrook(folder: Path) -> Iterator[Row]:
    """End-systole to end-diastole of one heart, volumes; the labelled cavity."""
    root = DATA / "cardiac_cine_sunnybrook"
    for path in sorted(root.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        row = {"name": path.stem}
        for side, phase in (("fixed", "ed"), ("moving", "es")):
            image = nibabel.load(root / f"{path.stem}_{phase}_label.nii.gz")
            labelled_slices = np.zeros(image.shape, np.uint8)
            labelled_slices[..., facts["slices_with_both"]] = 1
            labels = (np.asarray(image.dataobj) == 1).astype(np.uint8) * labelled_slices
            file = folder / f"{path.stem}_{phase}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(labels, image.affine), file)
            row |= {
                side: str(root / f"{path.stem}_cine4d.nii.gz"),
                f"{side}_phase": str(facts[phase]),
                f"{side}_labels": str(file),
            }
        yield row


def brain2d(_: Path) -> Iterator[Row]:
    """Each of 14 brain slices to the next."""
    root = DATA / "brain2d_trt20"
    for fixed, moving in pairwise(sorted(root.glob("img_*.nii.gz"))):
        yield {
            "fixed": str(fixed),
            "moving": str(moving),
            "fixed_labels": str(root / fixed.name.replace("img", "dkt")),
            "moving_labels": str(root / moving.name.replace("img", "dkt")),
            "name": fixed.name[4:6] + "-" + moving.name[4:6],
        }


def lung(folder: Path) -> Iterator[Row]:
    """One lung at two time points."""
    root = DATA / "lungct_elastix"
    lines = (root / "landmarks_mm.csv").read_text(encoding="utf-8").splitlines()
    table = folder / "lung.csv"
    table.write_text("\n".join(["x,y,z,a,b,c", *lines[1:]]), encoding="utf-8")
    sides = {"fixed": "baseline", "moving": "followup"}
    yield {
        "name": "lung",
        **{side: str(root / f"3DCT_lung_{state}.mha") for side, state in sides.items()},
        **{f"{s}_mask": str(root / f"3DCT_lung_{n}_mask.mha") for s, n in sides.items()},
        **{f"{side}_points": str(table) for side in sides},
    }


def histology(folder: Path) -> Iterator[Row]:
    """Every two stains of a tissue as grey levels; landmarks in pixels."""
    for tissue, scale in (("lesions_", 1.0), ("lung-lesion_3", 0.1)):
        stains = {}
        for path in sorted((DATA / "histology" / tissue).glob("*.jpg")):
            grey = sitk.VectorMagnitude(sitk.Cast(sitk.ReadImage(path), sitk.sitkVectorFloat32))
            grey.SetOrigin((0, 0)), grey.SetSpacing((1, 1))
            image = folder / f"{tissue}{path.stem}.nii.gz"
            sitk.WriteImage(grey, str(image))
            table = pd.read_csv(next(path.parent.glob(f"{path.stem}[._]*csv")))
            points = folder / f"{tissue}{path.stem}.csv"
            (table[["X", "Y"]] * scale).to_csv(points, index=False)
            stains[path.stem] = {"": str(image), "_points": str(points)}
        for fixed, moving in combinations(stains, 2):
            yield {
                "name": f"{tissue}{fixed}-{moving}",
                **{f"fixed{key}": file for key, file in stains[fixed].items()},
                **{f"moving{key}": file for key, file in stains[moving].items()},
            }


def without_tenth(distances: list[float]) -> float:
    """Return the mean without the lung landmark that is probably misplaced."""
    return float(np.mean(distances[:10] + distances[11:]))


LUNG = ["points_space=lps", "moving_points_columns=[3,4,5]"]
FLAT = ["fixed_points_columns=[0,1]", "moving_points_columns=[0,1]"]
SETS: dict[str, tuple[Callable[[Path], Iterator[Row]], list[str]]] = {
    "task04": (task04, []),
    "sunnybrook": (sunnybrook, []),
    "brain2d": (brain2d, []),
    "lung": (lung, LUNG),
    "histology": (histology, FLAT),
}


def register_and_score(
    name: str, rows: list[Row], way: str, overrides: list[str]
) -> Iterator[dict]:
    """Register and score each pair of a set by one method."""
    refines = "~optimizer" not in WAYS[way]
    applicable = [o for o in overrides if refines or not o.startswith("optimizer")]
    overrides = [*SETS[name][1], *WAYS[way], *applicable]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("register", overrides)
    registrar = build_pipeline(cfg, overrides)
    for row in rows:
        fixed, moving, _ = build_job(cfg, row).read()
        began = time.process_time()
        answer = registrar(fixed, moving, row["name"])
        seconds = time.process_time() - began
        deformation = answer.deformation
        sheet = measure_overlap(deformation, fixed, moving) | measure_landmark_error(
            deformation, fixed, moving
        )
        ((measure, stages),) = sheet.items()
        regularity = measure_regularity(deformation, None)
        yield {
            "set": name,
            "way": way,
            "pair": row["name"],
            "measure": measure,
            **{stage: value["mean"] for stage, value in stages.items()},
            **{f"{s} 10": without_tenth(v["each"]) for s, v in stages.items() if name == "lung"},
            "folds_percent": regularity["folds_percent"],
            "sdlogj": regularity["sdlogj"],
            "seconds": seconds,
        }


def main() -> None:
    """Run all sets and methods, or those named."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    folder, overrides = Path(sys.argv[1]), sys.argv[cut + 1 :]
    named = set(sys.argv[2:cut])
    if unknown := named - SETS.keys() - WAYS.keys():
        sys.exit(f"{sorted(unknown)}: choose among {[*SETS, *WAYS]}.")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for name in [name for name in SETS if name in named] or SETS:
        rows = list(SETS[name][0](folder))
        for way in [way for way in WAYS if way in named] or WAYS:
            try:
                table = pd.DataFrame(register_and_score(name, rows, way, overrides))
            except MissingPackageError as error:
                print(f"{name}, {way}: {error}", flush=True)
                continue
            table.to_csv(folder / f"{name}-{way}.csv", index=False)
            columns = ["headers", "aligned", "registered", "folds_percent", "sdlogj", "seconds"]
            columns += [column for column in table if column.endswith(" 10")]
            print(f"{name}, {way}, {len(table)} pairs")
            print(table[columns].mean().round(3).to_frame().T.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
