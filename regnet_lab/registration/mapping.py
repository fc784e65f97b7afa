"""Mapping of images, labels, landmarks and displacement fields through a deformation."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.preprocessing.functional import compute_stretch_matrix
from regnet_lab.spatial import Deformation, coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.utils.casts import cast_to_dtype

SLAB_VOXELS = 2**22  # resampled at a time


def resample_displacement(u: Tensor, grid: ImageGrid, fixed: ImageGrid) -> NDArray[np.float32]:
    """Resample a displacement to the fixed grid and convert it to that grid's voxels.

    u (1, D, *its grid), in its voxels, covers the field of view of ``grid``; it is interpolated
    linearly and constant beyond its outermost voxels.  The result is (D, *fixed.shape).
    """
    stretch = compute_stretch_matrix(grid.shape, u.shape[2:])
    affine = grid.affine @ coordinates.embed_in_3d(stretch)
    matrix = coordinates.voxel_to_voxel_matrix(fixed.affine, affine, grid.ndim)
    to_fixed_voxels = torch.from_numpy(np.linalg.inv(matrix)[:-1, :-1]).float()
    slabs = [
        torch.einsum("ij,bj...->bi...", to_fixed_voxels, ops.sample(u, points))
        for points in iterate_slabs(matrix, fixed.shape)
    ]
    return torch.cat(slabs, 2)[0].numpy()


def iterate_slabs(
    matrix: coordinates.Matrix, shape: Sequence[int], u: NDArray | None = None
) -> Iterator[Tensor]:
    """Yield the points matrix (x + u(x)) of a grid in slabs (1, D, *slab) along its first axis."""
    thickness = max(1, SLAB_VOXELS // math.prod(shape[1:]))
    single = torch.from_numpy(np.asarray(matrix)).float()[None]
    for start in range(0, shape[0], thickness):
        stop = min(start + thickness, shape[0])
        x = ops.identity_grid((stop - start, *shape[1:]), single)
        x[:, 0] += start
        if u is not None:
            x = x + torch.from_numpy(u[:, start:stop])
        points = ops.transform_points(single, x.flatten(2).transpose(1, 2))
        yield points.transpose(1, 2).view(x.shape)


def compute_fixed_to_moving(deformation: Deformation) -> coordinates.Matrix:
    """Compute the matrix (D+1, D+1) from voxels x + u(x) of the fixed grid to moving voxels."""
    moving_affine = np.linalg.inv(deformation.matrix) @ deformation.moving.affine
    fixed = deformation.fixed
    return coordinates.voxel_to_voxel_matrix(fixed.affine, moving_affine, fixed.ndim)


def warp_array(array: NDArray, deformation: Deformation, linear: bool = True) -> NDArray:
    """Resample the moving image, or with ``linear`` False its labels, on the fixed grid.

    The dtype is kept.  Outside the field of view of the moving image, images get their smallest
    value and labels 0.
    """
    sample = ops.sample if linear else ops.sample_nearest
    source = np.require(array, np.float32 if linear else None, ["C", "W"])
    image = torch.from_numpy(source)[None, None]
    background = image.min() if linear else torch.zeros((), dtype=image.dtype)
    last = torch.tensor(deformation.moving.shape).view(1, -1, *[1] * array.ndim) - 0.5
    matrix, shape = compute_fixed_to_moving(deformation), deformation.fixed.shape
    slabs = []
    for points in iterate_slabs(matrix, shape, deformation.u):
        inside = ((points >= -0.5) & (points <= last)).all(1, keepdim=True)
        slabs.append(torch.where(inside, sample(image, points), background))
    result = torch.cat(slabs, 2)[0, 0].numpy()
    return cast_to_dtype(result, array.dtype)


def _sample_at(u: NDArray, points: NDArray) -> NDArray[np.float32]:
    """Interpolate a field (D, *spatial) at voxels (N, D)."""
    listed = torch.from_numpy(np.asarray(points)).float()[None]
    return ops.sample_at(torch.from_numpy(u)[None], listed)[0].numpy()


def map_points_to_moving(deformation: Deformation, points: NDArray) -> NDArray[np.float64]:
    """Map fixed voxels (N, D) to moving voxels by the deformation."""
    mapped = points + _sample_at(deformation.u, points)
    return coordinates.apply_affine(compute_fixed_to_moving(deformation), mapped)


def map_points_to_fixed(deformation: Deformation, points: NDArray) -> NDArray[np.float64]:
    """Map moving voxels (N, D) to fixed voxels by the inverse of the deformation."""
    matrix = np.linalg.inv(compute_fixed_to_moving(deformation))
    aligned = coordinates.apply_affine(matrix, points)
    return aligned + _sample_at(deformation.inverse_u, aligned)


def remove_displacement(deformation: Deformation, aligned: bool = True) -> Deformation:
    """Return the deformation without displacement; with ``aligned`` False also without matrix."""
    matrix = deformation.matrix if aligned else np.eye(4)
    return replace(deformation, matrix=matrix, u=np.zeros_like(deformation.u))
