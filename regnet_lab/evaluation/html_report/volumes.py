"""Encode an example case as integer arrays that a browser can show."""

import base64
import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import format_header
from regnet_lab.visualization.layout import compute_intensity_limits, compute_symmetric_limits
from regnet_lab.visualization.slices import Array, compute_grid_steps, find_center_voxel

MAX_VOXELS = 1_500_000  # of a case; larger ones are subsampled
DISPLACEMENT_SCALE = 100  # displacements are rounded to 1/100 voxel
IMAGES = ("fixed", "moving", "warped")
LABELS = ("fixed_labels", "warped_labels")


def pack_array(array: Array) -> dict[str, str]:
    """Encode an array (C order, little-endian, gzip, base64) with its type, uint8 or int16."""
    little_endian = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    compressed = gzip.compress(little_endian.tobytes(), 6, mtime=0)
    return {"data": base64.b64encode(compressed).decode("ascii"), "type": array.dtype.name}


def window_to_uint8(image: Array, limits: tuple[float, float]) -> Array:
    """Map intensities between two limits to 0 to 255."""
    low, high = limits
    scaled = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.rint(255 * np.clip(np.nan_to_num(scaled), 0, 1)).astype(np.uint8)


def encode_jacobian(determinant: Array, limit: float) -> Array:
    """Map folded voxels to 0, others to 128 + 127 log det / limit, clipped to 1 to 255."""
    determinant = determinant.astype(np.float32)
    logarithm = np.log(np.where(determinant > 0, determinant, 1))
    level = 128 + np.rint(127 * np.clip(logarithm / limit, -1, 1))
    return np.where(determinant > 0, level, 0).astype(np.uint8)


def subsample_case(case: dict[str, Array], max_voxels: int) -> tuple[dict[str, Array], int]:
    """Keep every s-th voxel along each axis, so that about ``max_voxels`` are left.

    Returns:
        The case, with displacements in voxels of the coarser grid, and s.
    """
    ndim = case["fixed"].ndim
    stride = math.ceil((case["fixed"].size / max_voxels) ** (1 / ndim)) if max_voxels else 1
    every: Any = (..., *[slice(None, None, stride)] * ndim)
    coarse = {key: case[key][every] for key in case if key != "spacing"}
    return coarse | {"u": coarse["u"] / stride, "spacing": case["spacing"] * stride}, stride


def read_example_case(path: Path) -> dict[str, Any]:
    """Read the ``.npz`` of an example case."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: is damaged; evaluate the run again.") from error


def make_case_content(
    path: Path, max_voxels: int = MAX_VOXELS, display_name: str | None = None
) -> dict[str, Any]:
    """Make everything that the page needs to show an example case, subsampled if it is larger.

    ``display_name`` is the name of its method on the page; None: the one in the file.
    """
    stored = read_example_case(path)
    case, method, metric = (str(stored.pop(key)) for key in ("case", "method", "metric"))
    score = float(stored.pop("score"))
    coarse, stride = subsample_case(stored, max_voxels)
    fixed, moving, warped = (coarse[key].astype(np.float32) for key in IMAGES)
    low, high = limits = compute_intensity_limits(fixed, moving)
    span = compute_symmetric_limits(fixed - moving, fixed - warped)[1] / max(high - low, 1e-6) * 255
    determinant = coarse["determinant"].astype(np.float32)
    _, log_limit = compute_symmetric_limits(np.log(determinant[determinant > 0]))
    log_limit = max(round(log_limit, 2), 0.01)
    weight = coarse["fixed_labels"] != 0 if "fixed_labels" in coarse else fixed - np.nanmin(fixed)
    voxels = " x ".join(map(str, stored["fixed"].shape))
    folds = 100 * np.mean(stored["determinant"] <= 0)
    note = f"{voxels} voxels; folds in {folds:.3g} % of them"
    note += f"; shown is one voxel in {stride} along each axis" if stride > 1 else ""
    title = f"{display_name or method}, {path.stem}: {case}, {format_header(metric)} {score:.4g}"
    volumes = _encode_volumes(coarse, limits, log_limit)
    return {
        "title": title,
        "note": note,
        "shape": list(fixed.shape),
        "spacing": coarse["spacing"].tolist(),
        "step": compute_grid_steps(fixed.shape, coarse["spacing"].tolist()),
        "through": list(find_center_voxel(weight)),
        "span": span,
        "log_limit": log_limit,
        "volumes": {name: pack_array(array) for name, array in volumes.items()},
    }


def _encode_volumes(
    case: dict[str, Array], limits: tuple[float, float], log_limit: float
) -> dict[str, Array]:
    """Convert images, displacement, Jacobian and labels to uint8 or int16."""
    u = np.rint(case["u"].astype(np.float32) * DISPLACEMENT_SCALE)
    return {
        **{name: window_to_uint8(case[name], limits) for name in IMAGES},
        "u": np.clip(u, -32768, 32767).astype(np.int16),
        "jacobian": encode_jacobian(case["determinant"], log_limit),
        **_number_labels({name: case[name] for name in LABELS if name in case}),
    }


def _number_labels(label_maps: dict[str, Array]) -> dict[str, Array]:
    """Convert label maps to int16; where a label exceeds it, all are numbered in their order."""
    if label_maps and max(labels.max() for labels in label_maps.values()) > np.iinfo(np.int16).max:
        values = np.union1d(0, np.concatenate([labels.ravel() for labels in label_maps.values()]))
        label_maps = {name: values.searchsorted(labels) for name, labels in label_maps.items()}
    return {name: labels.astype(np.int16) for name, labels in label_maps.items()}
