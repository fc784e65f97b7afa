"""Errors at landmarks and against a known displacement."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from regnet_lab import ops

Array = NDArray[np.floating]


def sample_linear(u: Array, points: Array) -> Array:
    """Displacement (D, *spatial) at points (N, D), linear, constant beyond the outer centres."""
    field, at = torch.from_numpy(u)[None], torch.from_numpy(points)[None]
    return ops.sample_at(field, at)[0].numpy()


def sample_cubic(u: Array, points: Array) -> Array:
    """Displacement (D, *spatial) at points (N, D), cubic, zero outside: Learn2Reg's reading."""
    return np.stack([map_coordinates(component, points.T) for component in u], axis=1)


def target_registration_error(
    fixed_points: Array, moving_points: Array, u_at_points: Array, spacing: Array
) -> Array:
    """|| (x_f + u(x_f) - x_m) * spacing || of each pair of landmarks.

    Args:
        fixed_points: (N, D) voxels of the fixed grid.
        moving_points: (N, D) voxels, where the fixed ones should arrive.
        u_at_points: (N, D) displacement at the fixed points, voxels.
        spacing: (D,) millimetres per voxel.

    Returns:
        (N,) millimetres.
    """
    return np.linalg.norm((fixed_points + u_at_points - moving_points) * spacing, axis=1)


def endpoint_error(u: Array, known: Array) -> Array:
    """|| u - known || in voxels: two fields (D, *spatial) give (*spatial)."""
    return np.linalg.norm(u - known, axis=0)


def absolute_errors(
    u: Array, known: Array, spacing: Array, thresholds: Sequence[float]
) -> dict[str, float]:
    """Mean absolute error of a component, mm: of each axis over all voxels, then of all axes over
    the voxels of each class of length |known|.

    Args:
        u: (D, N) displacements, voxels.
        known: (D, N) what they should be.
        spacing: (D,) millimetres per voxel.
        thresholds: Rising bounds of the classes, mm; none: no classes.

    Returns:
        ``mae_axis0_mm`` and so on, ``mae_below_1.5_mm``, ``mae_1.5_to_4_mm``, ``mae_from_4_mm``;
        NaN of a class without voxels.
    """
    errors = np.abs(u - known) * spacing[:, None]
    found = {f"mae_axis{k}_mm": e.mean() if e.size else np.nan for k, e in enumerate(errors)}
    if thresholds:
        length = np.linalg.norm(known * spacing[:, None], axis=0)
        ends = [f"{t:g}" for t in thresholds]
        between = [f"{a}_to_{b}" for a, b in pairwise(ends)]
        which = np.digitize(length, thresholds)
        for c, name in enumerate([f"below_{ends[0]}", *between, f"from_{ends[-1]}"]):
            members = errors[:, which == c]
            found[f"mae_{name}_mm"] = members.mean() if members.size else np.nan
    return {name: float(value) for name, value in found.items()}
