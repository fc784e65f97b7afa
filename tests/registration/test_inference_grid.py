"""The grid on which a model registers a user's images."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.errors import UserError
from regnet_lab.registration.inference_grid import InferenceGrid
from regnet_lab.spatial import coordinates
from tests.helpers.registration import make_cases


def test_the_grid_does_not_depend_on_the_storage_order_of_an_image():
    fixed, _ = make_cases(3)
    reoriented = nibabel.as_closest_canonical(nibabel.Nifti1Image(fixed.image, fixed.affine))
    reoriented = reoriented.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    reoriented_case = LoadedCase(np.asarray(reoriented.dataobj), reoriented.affine)
    grids = [InferenceGrid(spacing=2.0).compute_grid(case) for case in (fixed, reoriented_case)]
    assert grids[0].shape == grids[1].shape
    np.testing.assert_allclose(grids[0].affine, grids[1].affine, atol=1e-9)
    stored = InferenceGrid(orientation="image").compute_grid(reoriented_case)
    assert stored.shape == reoriented_case.image.shape
    np.testing.assert_allclose(stored.affine, reoriented_case.affine)


def test_the_grid_covers_the_image_within_a_number_of_voxels():
    fixed, _ = make_cases(3)  # 20 x 17 x 18
    assert InferenceGrid((8, 40, 8)).compute_grid(fixed).shape == (20, 40, 18)
    assert InferenceGrid((24, 24), orientation="image").compute_grid(fixed).shape == (24, 24, 18)
    small = InferenceGrid(max_voxels=500).compute_grid(fixed)
    assert 300 < np.prod(small.shape) <= 600
    with pytest.raises(UserError, match="lpi"):
        InferenceGrid(orientation="lpi").compute_grid(fixed)


def make_oblique_case(shape, spacing):
    """Return a random image on a rotated grid."""
    rotation = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * spacing, (5, -7, 11)
    return LoadedCase(np.random.default_rng(0).random(shape, np.float32), affine)


def test_a_grid_along_the_world_axes_contains_the_valid_voxels_only():
    case = make_oblique_case((13, 14, 15), (1.0, 1.0, 1.2))
    valid = np.zeros(case.image.shape, bool)
    valid[3:9, 4:12, 2:11] = True
    valid[5, 6, 7] = False  # a hole does not matter
    for inside in (valid, np.ones_like(valid)):
        grid = InferenceGrid(orientation="world").compute_grid(case, inside)
        np.testing.assert_allclose(grid.affine[:3, :3], np.eye(3), atol=1e-12)
        voxels = np.argwhere(inside)
        indices = coordinates.apply_affine(np.linalg.inv(grid.affine) @ case.affine, voxels)
        assert (indices.min(0) >= -0.5).all()
        assert (indices.max(0) <= np.array(grid.shape) - 0.5).all()
        np.testing.assert_allclose(
            indices.min(0), np.array(grid.shape) - 1 - indices.max(0), atol=1e-9
        )
        assert (indices.min(0) < 0.5).all()
    whole = InferenceGrid(orientation="world").compute_grid(case)
    assert whole.shape == grid.shape
    coarse = InferenceGrid(spacing=2.0, orientation="world").compute_grid(case)
    np.testing.assert_allclose(coarse.affine[:3, :3], 2 * np.eye(3), atol=1e-12)


def test_parallel_images_and_thick_slices_keep_their_axes():
    parallel, _ = make_cases(3)
    parallel = replace(parallel, affine=np.diag([-1.0, 2.0, 1.0, 1.0]))
    for case in (parallel, make_oblique_case((13, 14, 5), (1.0, 1.0, 2.5))):
        ras = InferenceGrid().compute_grid(case)
        world = InferenceGrid(orientation="world").compute_grid(case)
        assert world.shape == ras.shape
        np.testing.assert_array_equal(world.affine, ras.affine)
