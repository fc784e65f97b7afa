"""Errors at landmarks and against a known displacement."""

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
