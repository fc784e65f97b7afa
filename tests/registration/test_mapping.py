"""Displacements, landmarks and labels mapped through a deformation."""

import numpy as np
import pytest
import torch

from regnet_lab.registration.mapping import (
    map_points_to_fixed,
    map_points_to_moving,
    resample_displacement,
    warp_array,
)
from regnet_lab.spatial import coordinates
from tests.helpers.geometry import affine_matrix
from tests.helpers.registration import make_cases, make_grids, make_pipeline


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_resampled_field_is_the_same_displacement_in_the_world(ndim):
    fixed, source = make_grids(ndim)
    bend = np.random.default_rng(0).normal(size=(ndim, ndim)) * 0.02

    def displace(grid):  # a linear displacement in the world, in voxels of the grid
        x = np.indices(grid.shape).reshape(ndim, -1)
        points = grid.voxel_to_lps[:-1, :-1] @ x + grid.voxel_to_lps[:-1, -1:]
        u = np.linalg.inv(grid.voxel_to_lps[:-1, :-1]) @ bend @ points
        return u.reshape(ndim, *grid.shape)

    u = torch.from_numpy(displace(source)).float()[None]
    resampled = resample_displacement(u, source, fixed)
    x = np.indices(fixed.shape).reshape(ndim, -1).T
    indices = coordinates.apply_affine(np.linalg.inv(source.voxel_to_lps) @ fixed.voxel_to_lps, x)
    inside = ((indices > 0) & (indices < np.array(source.shape) - 1)).all(1).reshape(fixed.shape)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(resampled[:, inside], displace(fixed)[:, inside], atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_are_mapped_back_and_labels_warp_like_points(ndim):
    fixed, moving = make_cases(ndim, affine_matrix((0, 0, 4), (1, 1, 1), (1, -1, 0)))
    deformation = make_pipeline()(fixed, moving).deformation
    inside = np.random.default_rng(0).uniform(6, 10, (9, ndim))
    np.testing.assert_allclose(
        map_points_to_fixed(deformation, map_points_to_moving(deformation, inside)),
        inside,
        atol=0.1,
    )
    label_map = np.rint(moving.image / 100).astype(np.int16)
    labels = warp_array(label_map, deformation, linear=False)
    assert labels.dtype == np.int16
    points = map_points_to_moving(deformation, np.argwhere(np.ones(labels.shape)))
    cell = np.floor(points + 0.5).astype(int)
    within = ((cell >= 0) & (cell < label_map.shape)).all(1)
    np.testing.assert_array_equal(labels.ravel()[within], label_map[tuple(cell[within].T)])
    assert not labels.ravel()[~within].any()
