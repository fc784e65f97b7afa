"""What ``register.py`` is asked for: a pair, a list of pairs, a transform applied, a network."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import SimpleITK as sitk  # noqa: N813
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from regnet_lab.data.datasets.csv_pairs import nearest
from regnet_lab.data.io.images import Volume, decode, frame, read_table
from regnet_lab.errors import UserError
from regnet_lab.registration.api import PARTS, SIDES, carry_out, job_of, registrar_of
from regnet_lab.registration.export import to_onnx, to_torch
from regnet_lab.registration.output import delivered, write_image
from regnet_lab.registration.quality import Score
from regnet_lab.spatial import chain, coordinates, read_transform
from regnet_lab.spatial.image_grid import Frame
from regnet_lab.spatial.writers import write_transform
from regnet_lab.utils.atomic_io import write_text

COLUMNS = (*SIDES, *(f"{s}_{p}" for s in SIDES for p in (*PARTS, "phase")), "name", "split")
FOUND = "pairs.csv"  # what became of a list
STAGES = ("headers", "aligned", "registered")


def set_threads(cfg: DictConfig) -> None:
    """SimpleITK's threads; PyTorch's are set elsewhere."""
    if cfg.threads:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(cfg.threads)


def serve(cfg: DictConfig) -> None:
    """Export a network, apply a transform, register a list of pairs or one, as is asked for.

    Raises:
        UserError: As these.
    """
    set_threads(cfg)
    if cfg.export:
        export(cfg)
    elif cfg.apply:
        apply(cfg)
    elif cfg.pairs:
        register_all(cfg)
    else:
        register_one(cfg)


def numbers(sheet: Score) -> dict[str, float]:
    """A quality sheet as one row of a table."""
    row: dict[str, float] = {}
    for measure in ("ncc", "lncc", "mi"):
        row |= {f"{measure}_{s}": n[measure] for s, n in sheet["similarity"].items()}
    for measure in ("dice", "tre_mm"):
        row |= {f"{measure}_{s}": n["mean"] for s, n in sheet.get(measure, {}).items()}
    row |= {key: value for key, value in sheet.items() if isinstance(value, float)}
    return row | {"seconds": sum(sheet["seconds"].values())}


def summary(sheet: Score) -> str:
    """A quality sheet in a line."""
    row = numbers(sheet)
    said = []
    for measure in ("dice", "tre_mm", "ncc"):
        steps = [f"{row[f'{measure}_{s}']:.3f}" for s in STAGES if f"{measure}_{s}" in row]
        said += [f"{measure} {' -> '.join(steps)}"] if steps else []
    return f"{', '.join(said)}, folds {row['folds_percent']:.3f} %, {row['seconds']:.1f} s"


def register_one(cfg: DictConfig) -> None:
    """Register the pair that the configuration names.

    Raises:
        UserError: As :func:`regnet_lab.registration.api.carry_out`.
    """
    job = job_of(cfg)
    for side in SIDES:
        job.case(side)  # before a network is built in vain
    sheet = carry_out(
        registrar_of(cfg, HydraConfig.get().overrides.task), job, Path(cfg.folder), cfg
    )
    Console().print(f"{job.name}: {summary(sheet)}; results in {cfg.folder}", highlight=False)


def export(cfg: DictConfig) -> None:
    """Write the run's network as ONNX or by torch.export, by the name, for the grid of the run or
    ``grid.shape``.

    Raises:
        UserError: The name or the grid is missing, or the model cannot be exported.
    """
    registrar, path = registrar_of(cfg, ()), Path(cfg.export)
    writers = {".onnx": to_onnx, ".pt2": to_torch}
    if path.suffix not in writers:
        raise UserError(f"export={path}: must end in one of {', '.join(writers)}.")
    if not registrar.grid.shape:
        raise UserError("export needs the grid of the network: grid.shape=[64,64,64].")
    shape = tuple(registrar.grid.shape)
    missed = writers[path.suffix](registrar.model, shape, path)
    said = f"{path} written for {' x '.join(map(str, shape))} voxels; it differs by {missed:.1e}"
    Console().print(said, highlight=False)


def rows_of(path: str) -> list[dict[str, str]]:
    """The rows of a list of pairs, empty cells absent.

    Raises:
        UserError: It is faulty, empty or has an unknown column.
    """
    rows = read_table(Path(path), SIDES)
    if unknown := sorted({column for row in rows for column in row} - {*COLUMNS}):
        raise UserError(
            f"{path}: there is no column '{unknown[0]}' to use; do you mean "
            f"'{nearest(unknown[0], COLUMNS)}'? Possible are {', '.join(COLUMNS)}."
        )
    if not rows:
        raise UserError(f"{path}: lists no pairs; give a row for each.")
    return [{key: value for key, value in row.items() if value} for row in rows]


def register_all(cfg: DictConfig) -> None:
    """Register every pair of a list, each into a folder of its name; a pair that fails does not
    stop the others.  ``pairs.csv`` says after each pair what became of those so far.

    Raises:
        UserError: In the end, if some failed, naming them.
    """
    rows, console = rows_of(cfg.pairs), Console()
    registrar = registrar_of(cfg, HydraConfig.get().overrides.task)
    table: list[Mapping[str, object]] = []
    names: set[str] = set()
    for number, row in enumerate(rows, start=1):
        name = row.get("name") or f"row {number}"
        try:
            job = job_of(cfg, row, str(Path(cfg.pairs).parent))
            name = job.name if job.files.get("fixed") and job.files.get("moving") else name
            if name in names:
                raise UserError(f"there is a pair {name} above; give each its own name.")
            names.add(name)
            sheet = carry_out(registrar, job, Path(cfg.folder, name), cfg)
            table.append({"name": name, "error": "", **numbers(sheet)})
            console.print(f"{name}: {summary(sheet)}", highlight=False)
        except UserError as error:
            table.append({"name": name, "error": str(error)})
            console.print(f"{name}: failed, {error}", highlight=False, markup=False)
        write_text(Path(cfg.folder, FOUND), pd.DataFrame(table).to_csv(index=False))
    if failed := [str(row["name"]) for row in table if row["error"]]:
        raise UserError(
            f"{len(failed)} of {len(rows)} pairs failed: {', '.join(failed)}; the others are in "
            f"{cfg.folder}, and why in its {FOUND}."
        )


def own_grid(transform: sitk.CompositeTransform) -> Frame | None:
    """The frame of the first field that points go through."""
    for n in reversed(range(transform.GetNumberOfTransforms())):
        part = transform.GetNthTransform(n).Downcast()
        if isinstance(part, sitk.DisplacementFieldTransform):
            return Frame.of(part.GetDisplacementField())
    return None


def volume_of(path: str, phase: int | None) -> Volume:
    """An image in its own dtype, or a frame of a 4D one."""
    whole = decode(Path(path))
    chosen = frame(Path(path), whole, phase)
    array = whole.array[..., phase] if whole.array.ndim == 4 else whole.array
    return Volume(array, chosen.affine)


def apply(cfg: DictConfig) -> None:
    """Resample ``image`` through the transforms of ``apply``, onto the grid of ``fixed``, or of
    the transform's field, or its own; of several transforms the chain is written, too.

    Raises:
        UserError: A file is faulty, or does not fit the others.
    """
    if not cfg.image:
        raise UserError("say what to resample: image=<file>.")
    given = cfg.apply if OmegaConf.is_list(cfg.apply) else [cfg.apply]
    modes = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}
    if cfg.interpolation not in modes:
        raise UserError(f"interpolation={cfg.interpolation} must be one of {', '.join(modes)}.")
    moving = volume_of(cfg.image, cfg.moving_phase)
    source = Frame(moving.array.shape, moving.affine)
    target = None
    if cfg.fixed:
        fixed = volume_of(cfg.fixed, cfg.fixed_phase)
        target = Frame(fixed.array.shape, fixed.affine)
    whole = chain([read_transform(path, target, source) for path in given])
    if whole.GetDimension() != source.ndim:
        raise UserError(
            f"{cfg.image} has {source.ndim} axes, but the transform is {whole.GetDimension()}D."
        )
    target = target or own_grid(whole) or source
    array = through(whole, moving, target, modes[cfg.interpolation])
    with delivered(Path(cfg.folder)) as aside:
        write_image(aside / f"warped{cfg.suffix}", array, target.affine)
        if len(given) > 1:
            write_transform(aside / "Composite.h5", whole)
    Console().print(f"{cfg.image} resampled into {cfg.folder}", highlight=False)


def through(transform: sitk.Transform, moving: Volume, target: Frame, mode: int) -> NDArray:
    """The moving image on a frame, in its own dtype, its smallest value (labels: 0) outside."""
    array = moving.array
    linear = mode == sitk.sitkLinear
    outside = float(array.min()) if linear else 0.0
    image = coordinates.to_image(array.astype("float32") if linear else array, moving.affine)
    found = sitk.GetArrayFromImage(sitk.Resample(image, target.empty(), transform, mode, outside)).T
    return (found.round() if array.dtype.kind in "iu" else found).astype(array.dtype)
