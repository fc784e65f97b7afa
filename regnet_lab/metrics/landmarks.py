"""Errors at landmarks and against a true displacement."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from regnet_lab import ops

Array = NDArray[np.floating]


def sample_linear(u: Array, points: Array) -> Array:
    """Sample a displacement (D, *spatial) at points (N, D) linearly, constant at the border."""
    field, coordinates = torch.from_numpy(u)[None], torch.from_numpy(points)[None]
    return ops.sample_at(field, coordinates)[0].numpy()


def sample_cubic(u: Array, points: Array) -> Array:
    """Sample a displacement (D, *spatial) at points (N, D) as Learn2Reg does: cubic, 0 outside."""
    return np.stack([map_coordinates(component, points.T) for component in u], axis=1)


def target_registration_error(
    fixed_points: Array, moving_points: Array, u_at_points: Array, spacing: Array
) -> Array:
    """Compute || (x_f + u(x_f) - x_m) * spacing || of each pair of landmarks, (N,) millimetres.

    Args:
        fixed_points: (N, D) voxels of the fixed grid.
        moving_points: (N, D) voxels of corresponding points in the moving image.
        u_at_points: (N, D) displacement at the fixed points, voxels.
        spacing: (D,) millimetres per voxel.

    >>> fixed, moving = np.array([[10.0, 10.0]]), np.array([[13.0, 14.0]])
    >>> target_registration_error(fixed, moving, np.array([[0.0, 4.0]]), np.array([2.0, 1.0]))
    array([6.])
    """
    return np.linalg.norm((fixed_points + u_at_points - moving_points) * spacing, axis=1)


def endpoint_error(u: Array, true_u: Array) -> Array:
    """Compute || u - true_u || of two fields (D, *spatial): (*spatial) voxels."""
    return np.linalg.norm(u - true_u, axis=0)


def mean_absolute_errors(
    u: Array, true_u: Array, spacing: Array, thresholds: Sequence[float]
) -> dict[str, float]:
    """Compute mean absolute errors by axis and by class of the true displacement's length, in mm.

    The error of an axis is the mean over all voxels, that of a class the mean of all components
    over the voxels whose |true_u| lies in the class.

    Args:
        u: (D, N) displacements, voxels.
        true_u: (D, N) true displacements.
        spacing: (D,) millimetres per voxel.
        thresholds: Increasing bounds of the classes, mm; empty: no classes.

    Returns:
        ``mae_axis0_mm`` and so on, ``mae_below_1.5_mm``, ``mae_1.5_to_4_mm``, ``mae_from_4_mm``;
        NaN for a class without voxels.
    """
    errors = np.abs(u - true_u) * spacing[:, None]
    groups = {f"axis{k}": axis_errors for k, axis_errors in enumerate(errors)}
    if thresholds:
        length = np.linalg.norm(true_u * spacing[:, None], axis=0)
        bounds = [f"{t:g}" for t in thresholds]
        between = [f"{a}_to_{b}" for a, b in pairwise(bounds)]
        classes = np.digitize(length, thresholds)
        for c, name in enumerate([f"below_{bounds[0]}", *between, f"from_{bounds[-1]}"]):
            groups[name] = errors[:, classes == c]
    return {
        f"mae_{name}_mm": float(members.mean()) if members.size else np.nan
        for name, members in groups.items()
    }
