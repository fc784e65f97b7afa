"""Test that the storage of images does not change their registration in world space."""

import numpy as np
import pytest

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from tests.helpers.geometry import affine_matrix, rotate_with_padding
from tests.helpers.registration import make_cases, make_pipeline, render_texture


def reorient(case, order, signs):
    """Store an image with its axes in another order and direction."""
    moved = np.transpose(case.image, order)
    affine = case.affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            moved = np.flip(moved, axis)
            affine[:3, 3] += affine[:3, axis] * (moved.shape[axis] - 1)
            affine[:3, axis] *= -1
    return LoadedCase(np.ascontiguousarray(moved), affine)


def map_to_moving(result, points):
    """Map points (N, D) in LPS+ mm to the moving world."""
    return np.array([result.deformation.forward.TransformPoint(p) for p in points.tolist()])


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_the_axes_of_an_image_do_not_change_the_result(side):
    cases = make_cases(3, affine_matrix((0, 0, 6), (1, 1, 1), (1.5, -1, 1)))
    pair = dict(zip(("fixed", "moving"), cases, strict=True))
    points = np.random.default_rng(0).uniform(-7, 7, (50, 3))
    expected = map_to_moving(make_pipeline()(**pair), points)
    assert np.linalg.norm(expected - points, axis=1).mean() > 1
    stored = pair | {side: reorient(pair[side], (2, 0, 1), (-1, 1, -1))}
    error = np.linalg.norm(map_to_moving(make_pipeline()(**stored), points) - expected, axis=1)
    assert error.max() < (1e-2 if side == "fixed" else 0.1)


def test_a_resampled_moving_image_gives_the_same_result():
    move = affine_matrix((0, 0, 6), (1, 1, 1), (1.5, -1, 1))
    fixed, moving = make_cases(3, move)
    oblique = affine_matrix((20, -15, 30), (1, 1.1, 0.9), (0, 0, 0))
    oblique[:3, 3] = -oblique[:3, :3] @ [19.5, 19.5, 19.5]
    resampled = LoadedCase(render_texture(ImageGrid((40, 40, 40), oblique), move=move), oblique)
    points = np.random.default_rng(0).uniform(-7, 7, (50, 3))
    expected = map_to_moving(make_pipeline()(fixed, moving), points)
    error = map_to_moving(make_pipeline()(fixed, resampled), points) - expected
    assert np.linalg.norm(error, axis=1).mean() < 0.5


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_padding_around_a_rotated_image_does_not_change_the_result(side, ndim):
    cases = make_cases(ndim, affine_matrix((0, 0, 6), (1, 1, 1), (1.5, -1, 0)))
    pair = dict(zip(("fixed", "moving"), cases, strict=True))
    case = pair[side]
    image, _, _, matrix = rotate_with_padding(case.image, (0, 0, 25), (0.9, 0.9, 0.9))
    stored = pair | {
        side: LoadedCase(image.astype(np.float32), case.affine @ coordinates.embed_in_3d(matrix))
    }
    points = np.random.default_rng(0).uniform(-7, 7, (50, ndim))
    expected = map_to_moving(make_pipeline()(**pair), points)
    assert np.linalg.norm(expected - points, axis=1).mean() > 1
    error = np.linalg.norm(map_to_moving(make_pipeline()(**stored), points) - expected, axis=1)
    assert error.mean() < 0.3
