"""Planes through images, display ranges and overlays."""

import numpy as np
import pytest
import torch

from regnet_lab.visualization import layout, slices, views

SHAPES = [(9, 11), (7, 8, 9)]


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_planes_contain_the_voxel(shape):
    volume = noise(3, *shape).numpy()
    through = tuple(n // 3 for n in shape)
    for plane in slices.get_orthogonal_planes(through):
        image = slices.extract_slice(volume, plane)
        right, up = plane.axes
        assert right < up
        assert image.shape == (3, shape[right], shape[up])
        at_voxel = image[:, through[right], through[up]]
        np.testing.assert_array_equal(at_voxel, volume[(slice(None), *through)])
    assert len(slices.get_orthogonal_planes(through)) == {2: 1, 3: 3}[len(shape)]


@pytest.mark.parametrize("shape", SHAPES)
def test_center_voxel_is_the_center_of_mass_or_else_the_middle(shape):
    weight = np.zeros(shape)
    weight[(1,) * len(shape)] = 3
    weight[(1,) * (len(shape) - 1) + (5,)] = 1
    assert slices.find_center_voxel(weight) == (1,) * (len(shape) - 1) + (2,)
    assert slices.find_center_voxel(np.zeros(shape)) == tuple(n // 2 for n in shape)
    assert slices.find_center_voxel(np.full(shape, np.nan)) == tuple(n // 2 for n in shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_translation_shifts_grid_lines_by_its_in_plane_components(shape):
    shift = np.array([0.5, -2.0, 3.25])[: len(shape)]
    u = np.broadcast_to(shift.reshape(-1, *[1] * len(shape)), (len(shape), *shape))
    steps = [2, 3, 4][: len(shape)]
    for plane in slices.get_orthogonal_planes([n // 2 for n in shape]):
        lines = slices.compute_warped_grid_lines(u, plane, steps)
        undisplaced = slices.compute_warped_grid_lines(np.zeros_like(u), plane, steps)
        for line, regular in zip(lines, undisplaced, strict=True):
            np.testing.assert_allclose(
                line - regular, np.tile(shift[list(plane.axes)], (len(line), 1))
            )


def test_grid_lines_of_zero_displacement_are_regular_and_vertical_ones_first():
    lines = slices.compute_warped_grid_lines(
        np.zeros((2, 5, 4)), slices.Plane((0, 1), (0, 0)), [2, 3]
    )
    upward, rightward = lines[:3], lines[3:]
    assert [line[0, 0] for line in upward] == [0, 2, 4]
    assert all(np.ptp(line[:, 0]) == 0 and np.ptp(line[:, 1]) == 3 for line in upward)
    assert [line[0, 1] for line in rightward] == [0, 3]
    assert all(np.ptp(line[:, 1]) == 0 and np.ptp(line[:, 0]) == 4 for line in rightward)


def test_grid_lines_follow_a_varying_displacement():
    u = noise(3, 7, 8, 9).numpy()
    plane = slices.Plane((1, 2), (4, 0, 0))
    line = slices.compute_warped_grid_lines(u, plane, [1, 3, 2])[2]
    expected = np.stack([6 + u[1, 4, 6, :], np.arange(9) + u[2, 4, 6, :]], axis=1)
    np.testing.assert_allclose(line, expected, rtol=1e-6)


def test_grid_steps_are_square_in_millimeters_and_at_least_one():
    assert slices.compute_grid_steps([40, 80], [2.0, 1.0], lines=10) == [4, 8]
    assert slices.compute_grid_steps([100, 100, 5], [1.0, 1.0, 20.0]) == [5, 5, 1]


def test_fold_overlay_is_red_exactly_where_the_determinant_is_not_positive():
    determinant = np.array([[1.0, 0.0, -2.0], [np.nan, 1e-6, -1e-6]])
    overlay = views.make_fold_overlay(determinant)
    red = [[False, True, True], [False, False, True]]
    np.testing.assert_array_equal(overlay[..., 3] == 1, red)
    np.testing.assert_array_equal(overlay[..., 3] == 0, np.logical_not(red))
    assert (overlay[red] == views.FOLD_COLOR).all()


def test_display_limits_ignore_nonfinite_values_and_are_never_empty():
    values = np.array([np.nan, -np.inf, 0.0, -3.0, 2.0])
    assert layout.compute_intensity_limits(values) == pytest.approx((-3, 2), rel=0.05)
    assert layout.compute_symmetric_limits(values) == pytest.approx((-3, 3), rel=0.05)
    assert layout.compute_symmetric_limits(np.zeros(4)) == (-1, 1)
    assert layout.compute_intensity_limits(np.full(4, np.nan)) == (0, 1)
