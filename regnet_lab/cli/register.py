"""The command ``register.py``: register a pair or a table of pairs, apply a transform, export."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import SimpleITK as sitk
import torch
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from regnet_lab.data.io.images import Volume, decode_image, extract_frame
from regnet_lab.data.io.tables import check_columns, read_table
from regnet_lab.errors import UserError
from regnet_lab.registration.api import build_pipeline
from regnet_lab.registration.export import export_onnx, export_torch
from regnet_lab.registration.jobs import (
    PAIR_KEYS,
    SETTINGS_FILE,
    SIDES,
    build_job,
    register_and_save,
    require_no_other_registration,
)
from regnet_lab.registration.output import atomic_directory
from regnet_lab.registration.quality import QualityReport
from regnet_lab.spatial import compose_transforms, coordinates, read_transform
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.nifti import read_header
from regnet_lab.spatial.writers import write_image, write_itk_transform
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.casts import cast_to_dtype
from regnet_lab.utils.text import make_file_name, print_line

PAIR_COLUMNS = (*PAIR_KEYS, "split")
RESULTS_FILE = "pairs.csv"
STAGES = ("headers", "aligned", "registered")
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".vtk")
INTERPOLATIONS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}


def run_register(cfg: DictConfig) -> None:
    """Export a network, apply a transform, or register a table of pairs or one pair."""
    check_settings(cfg)
    if cfg.threads:  # those of PyTorch are set by the entry point
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(cfg.threads)
    if cfg.export:
        export_network(cfg)
    elif cfg.apply_transform:
        apply_transforms(cfg)
    elif cfg.pairs:
        register_all(cfg)
    else:
        register_one(cfg)


def check_settings(cfg: DictConfig) -> None:
    """Raise a UserError for an output that cannot be written or a device that does not exist."""
    if not str(cfg.output_dir or "").strip():
        raise UserError("output_dir is empty; name a folder.")
    if cfg.image_suffix not in IMAGE_SUFFIXES:
        raise UserError(
            f"image_suffix={cfg.image_suffix} must be one of {', '.join(IMAGE_SUFFIXES)}."
        )
    try:
        torch.device(cfg.device or "cpu")
    except RuntimeError as error:
        raise UserError(f"device={cfg.device} must be cpu, cuda or cuda:<number>.") from error


def flatten_report(report: QualityReport) -> dict[str, float]:
    """Convert a quality report to one row of a table."""
    row: dict[str, float] = {}
    for measure in ("ncc", "lncc", "mi"):
        row |= {f"{measure}_{s}": n[measure] for s, n in report["similarity"].items()}
    for measure in ("dice", "tre_mm"):
        row |= {f"{measure}_{s}": n["mean"] for s, n in report.get(measure, {}).items()}
    row |= {key: value for key, value in report.items() if isinstance(value, float)}
    return row | {"seconds": sum(report["seconds"].values())}


def format_summary(report: QualityReport) -> str:
    """Format a quality report as one line."""
    row = flatten_report(report)
    parts = []
    for measure in ("dice", "tre_mm", "ncc"):
        values = [f"{row[f'{measure}_{s}']:.3f}" for s in STAGES if f"{measure}_{s}" in row]
        parts += [f"{measure} {' -> '.join(values)}"] if values else []
    return f"{', '.join(parts)}, folds {row['folds_percent']:.3f} %, {row['seconds']:.1f} s"


def register_one(cfg: DictConfig) -> None:
    """Register the pair of the configuration."""
    job = build_job(cfg)
    for side in SIDES:
        job.build_case(side)  # raises before a network is loaded
    pipeline = build_pipeline(cfg, HydraConfig.get().overrides.task)
    report = register_and_save(pipeline, job, Path(cfg.output_dir), cfg)
    message = f"{job.name}: {format_summary(report)}; results in {cfg.output_dir}"
    print_line(message)


def export_network(cfg: DictConfig) -> None:
    """Export the network of the run for its training grid or ``grid.shape``."""
    pipeline, path = build_pipeline(cfg, ()), Path(cfg.export)
    exporters = {".onnx": export_onnx, ".pt2": export_torch}
    if path.suffix not in exporters:
        raise UserError(f"export={path}: must end in one of {', '.join(exporters)}.")
    if not pipeline.grid.shape:
        raise UserError("export needs the grid of the network: grid.shape=[64,64,64].")
    shape = tuple(pipeline.grid.shape)
    error = exporters[path.suffix](pipeline.model, shape, path)
    size = " x ".join(map(str, shape))
    message = f"{path} written for {size} voxels; largest difference {error:.1e} voxels"
    print_line(message)


def read_pairs_table(path: str) -> list[dict[str, str]]:
    """Read the rows of a table of pairs without their empty cells."""
    rows = read_table(Path(path), SIDES)
    check_columns(path, {column for row in rows for column in row}, PAIR_COLUMNS)
    if not rows:
        raise UserError(f"{path}: contains no pairs; add one row per pair.")
    return [{key: value for key, value in row.items() if value} for row in rows]


def register_all(cfg: DictConfig) -> None:
    """Register every pair of a table, each into a folder of its name.

    A pair that fails does not stop the others; ``pairs.csv`` is updated after each.

    Raises:
        UserError: In the end, if some failed, with their names.
    """
    rows = read_pairs_table(cfg.pairs)
    pipeline = build_pipeline(cfg, HydraConfig.get().overrides.task)
    table: list[Mapping[str, object]] = []
    names: set[str] = set()
    for number, row in enumerate(rows, start=1):
        name = row.get("name") or f"row {number}"
        try:
            job = build_job(cfg, row, str(Path(cfg.pairs).parent))
            name = job.name if job.files.get("fixed") and job.files.get("moving") else name
            if name in names:
                raise UserError(f"another pair above is also named {name}; give it its own name.")
            names.add(name)
            report = register_and_save(
                pipeline, job, Path(cfg.output_dir, make_file_name(name)), cfg
            )
            table.append({"name": name, "error": "", **flatten_report(report)})
            print_line(f"{name}: {format_summary(report)}")
        except UserError as error:
            table.append({"name": name, "error": str(error)})
            print_line(f"{name}: failed, {error}")
        write_text(Path(cfg.output_dir, RESULTS_FILE), pd.DataFrame(table).to_csv(index=False))
    if failed := [str(row["name"]) for row in table if row["error"]]:
        raise UserError(
            f"{len(failed)} of {len(rows)} pairs failed: {', '.join(failed)}; the others are in "
            f"{cfg.output_dir}, the reasons in its {RESULTS_FILE}."
        )


def find_field_grid(transform: sitk.CompositeTransform) -> ImageGrid | None:
    """Return the grid of the first displacement field that points go through, if there is one."""
    for n in reversed(range(transform.GetNumberOfTransforms())):
        part = transform.GetNthTransform(n).Downcast()
        if isinstance(part, sitk.DisplacementFieldTransform):
            return ImageGrid.from_sitk(part.GetDisplacementField())
    return None


def read_image(path: str, phase: int | None) -> Volume:
    """Read an image, or one phase of a 4D image, with its own dtype."""
    volume = decode_image(Path(path))
    affine = extract_frame(Path(path), volume, phase).affine
    return Volume(volume.array[..., phase] if volume.array.ndim == 4 else volume.array, affine)


def apply_transforms(cfg: DictConfig) -> None:
    """Resample ``image`` through the transforms of ``apply_transform``.

    The result lies on the grid of ``fixed``, else of the transform's field, else of the image.  Of
    several transforms the composition is written, too.
    """
    if not cfg.image:
        raise UserError("Name the image to resample: image=<file>.")
    if cfg.interpolation not in INTERPOLATIONS:
        choices = ", ".join(INTERPOLATIONS)
        raise UserError(f"interpolation={cfg.interpolation} must be one of {choices}.")
    keys = ("image", "fixed", "apply_transform", "interpolation")
    settings = {key: str(cfg[key]) for key in keys}
    require_no_other_registration(Path(cfg.output_dir), settings, cfg.overwrite)
    paths = cfg.apply_transform
    paths = paths if OmegaConf.is_list(paths) else [paths]
    image = read_image(cfg.image, cfg.moving_phase)
    image_header = read_header(Path(cfg.image))
    image_grid, fixed_grid = ImageGrid(image.array.shape, image.affine, image_header), None
    if cfg.fixed:
        fixed = read_image(cfg.fixed, cfg.fixed_phase)
        fixed_grid = ImageGrid(fixed.array.shape, fixed.affine, read_header(Path(cfg.fixed)))
    transform = compose_transforms([read_transform(p, fixed_grid, image_grid) for p in paths])
    if transform.GetDimension() != image_grid.ndim:
        raise UserError(
            f"{cfg.image} has {image_grid.ndim} axes, but the transform is "
            f"{transform.GetDimension()}D."
        )
    grid = fixed_grid or find_field_grid(transform) or image_grid
    array = resample_through(transform, image, grid, cfg.interpolation)
    with atomic_directory(Path(cfg.output_dir)) as temporary:
        write_image(temporary / f"warped{cfg.image_suffix}", array, grid.affine)
        (temporary / SETTINGS_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        if len(paths) > 1:
            write_itk_transform(temporary / "Composite.h5", transform)
    print_line(f"{cfg.image} resampled into {cfg.output_dir}")


def resample_through(
    transform: sitk.Transform, image: Volume, grid: ImageGrid, interpolation: str
) -> NDArray:
    """Resample an image on a grid; the dtype is kept.

    Outside, images get their smallest value, and with ``nearest`` 0.
    """
    array, linear = image.array, interpolation == "linear"
    background = float(array.min()) if linear else 0.0
    source = coordinates.array_to_sitk(array.astype("float32") if linear else array, image.affine)
    mode = INTERPOLATIONS[interpolation]
    resampled = sitk.Resample(source, grid.to_sitk(), transform, mode, background)
    result = sitk.GetArrayFromImage(resampled).T
    return cast_to_dtype(result, array.dtype)
