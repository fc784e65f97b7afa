"""A kept case as what a browser can show: whole numbers, packed."""

import base64
import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import header
from regnet_lab.visualization.layout import symmetric, window
from regnet_lab.visualization.slices import Array, centre, grid_steps

MOST = 1_500_000  # voxels of a case; of a larger one every second, third, ... is shown
FINE = 100  # parts of a voxel to which displacements are rounded
UNREADABLE = (OSError, ValueError, KeyError, EOFError)


def packed(array: Array) -> dict[str, str]:
    """Values, C order, little-endian, gzip, base64; and what they are, ``uint8`` or ``int16``."""
    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"))
    text = base64.b64encode(gzip.compress(plain.tobytes(), 6, mtime=0)).decode("ascii")
    return {"data": text, "type": array.dtype.name}


def bytes_of(image: Array, limits: tuple[float, float]) -> Array:
    """An image between its limits as 0 to 255."""
    low, high = limits
    scaled = (image.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.rint(255 * np.clip(np.nan_to_num(scaled), 0, 1)).astype(np.uint8)


def jacobian_bytes(determinant: Array, limit: float) -> Array:
    """0 where the determinant is not positive, else 128 + 127 log det / limit, 1 to 255."""
    determinant = determinant.astype(np.float32)
    logarithm = np.log(np.where(determinant > 0, determinant, 1))
    level = 128 + np.rint(127 * np.clip(logarithm / limit, -1, 1))
    return np.where(determinant > 0, level, 0).astype(np.uint8)


def thinned(case: dict[str, Array], most: int) -> tuple[dict[str, Array], int]:
    """Every s-th voxel of a case along each axis, so that at most about ``most`` are left; and s.

    Displacements come in voxels of the thinner grid.
    """
    ndim = case["fixed"].ndim
    stride = math.ceil((case["fixed"].size / most) ** (1 / ndim)) if most else 1
    every: Any = (..., *[slice(None, None, stride)] * ndim)
    thin = {key: case[key][every] for key in case if key != "spacing"}
    return thin | {"u": thin["u"] / stride, "spacing": case["spacing"] * stride}, stride


def kept(path: Path) -> dict[str, Any]:
    """What a callback kept of a case.

    Raises:
        UserError: The file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except UNREADABLE as error:
        raise UserError(f"{path}: is damaged; judge the run again.") from error


def case_content(path: Path, most: int = MOST, name: str | None = None) -> dict[str, Any]:
    """Everything the page needs to show a case; ``name`` is what its method is called there.

    Raises:
        UserError: The file is damaged.
    """
    found = kept(path)
    case, method, metric = (str(found.pop(key)) for key in ("case", "method", "metric"))
    score = float(found.pop("score"))
    shape = found["fixed"].shape
    thin, stride = thinned(found, most)
    fixed, moving, warped = (thin[key].astype(np.float32) for key in ("fixed", "moving", "warped"))
    low, high = limits = window(fixed, moving)
    span = symmetric(fixed - moving, fixed - warped)[1] / max(high - low, 1e-6) * 255
    determinant = thin["determinant"].astype(np.float32)
    limit = max(round(symmetric(np.log(determinant[determinant > 0]))[1], 2), 0.01)
    volumes = {name: bytes_of(thin[name], limits) for name in ("fixed", "moving", "warped")}
    volumes |= {
        "u": np.clip(np.rint(thin["u"].astype(np.float32) * FINE), -32768, 32767).astype(np.int16),
        "jacobian": jacobian_bytes(determinant, limit),
    }
    volumes |= {name: thin[name] for name in ("fixed_labels", "warped_labels") if name in thin}
    weight = thin["fixed_labels"] != 0 if "fixed_labels" in thin else fixed - np.nanmin(fixed)
    voxels = " x ".join(map(str, shape))
    folds = 100 * np.mean(found["determinant"] <= 0)
    note = f"{voxels} voxels; folds in {folds:.3g} % of them"
    note += f"; shown is one voxel in {stride} along each axis" if stride > 1 else ""
    return {
        "title": f"{name or method}, {path.stem}: {case}, {header(metric)} {score:.4g}",
        "note": note,
        "shape": list(fixed.shape),
        "spacing": thin["spacing"].tolist(),
        "step": grid_steps(fixed.shape, thin["spacing"].tolist()),
        "through": list(centre(weight)),
        "span": span,
        "log_limit": limit,
        "volumes": {name: packed(array) for name, array in volumes.items()},
    }
