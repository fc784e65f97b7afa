"""Test that the storage of images does not change their registration in world space."""

from dataclasses import replace

import numpy as np
import pytest

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.data.preprocessing.functional import normalize_percentiles
from regnet_lab.errors import UserError
from regnet_lab.models import Identity
from regnet_lab.registration.pipeline import RegistrationPipeline, darken_padding
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.linear_alignment import LinearAlignment
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


def test_a_pair_in_different_units_is_named_before_it_is_aligned(caplog):
    fixed, moving = make_cases(2)
    moving = replace(moving, affine=moving.affine @ np.diag([1e-3, 1e-3, 1, 1]))

    def refuse(pair):
        raise UserError("not aligned")

    with pytest.raises(UserError, match="not aligned"):
        RegistrationPipeline(Identity(), refuse)(fixed, moving)
    assert "The fixed image measures 30 x 28.9 mm" in caplog.messages[0]


def make_round_field_of_view(center, padding):
    """Return a CT-like ball in air, with padding outside a cylinder that stays in place."""
    x = np.indices((26, 24, 22)).astype(float)
    distance = np.sqrt(sum((x[k] - center[k]) ** 2 for k in range(3)))
    image = np.where(distance < 6, 40 * distance, -1000.0)
    image += np.random.default_rng(0).normal(size=image.shape)
    image[np.hypot(x[0] - 12.5, x[1] - 11.5) > 11] = padding
    return image.astype(np.float32)


@pytest.mark.parametrize("padding", [-3024, 0, 100, 32767])
def test_padding_of_any_value_does_not_hold_the_alignment_back(padding):
    shift = np.array([2.5, -1.5, 2.0])
    centers = np.array([12.0, 12.0, 11.0]) + np.outer([0, 1], shift)
    fixed, moving = (LoadedCase(make_round_field_of_view(c, padding), np.eye(4)) for c in centers)
    pipeline = RegistrationPipeline(Identity(), LinearAlignment(["rigid"]))
    result = pipeline(fixed, moving)
    mapped = coordinates.apply_affine(result.deformation.matrix, centers[:1])
    np.testing.assert_allclose(mapped, centers[1:], atol=0.15)


def test_the_padding_of_volumes_becomes_dark():
    image = make_round_field_of_view((12, 12, 11), 32767)
    array = darken_padding(normalize_percentiles(image), image)
    assert (array[image == 32767] == 0).all()
    np.testing.assert_array_equal(array[image < 32767], normalize_percentiles(image)[image < 32767])


@pytest.mark.parametrize("kind", ["dark", "2D", "labels"])
def test_other_padding_is_left_as_it_is(kind):
    image = make_round_field_of_view((12, 12, 11), -3024 if kind == "dark" else 32767)
    image = image[:, :, 11] if kind == "2D" else image
    image = (
        np.where(image > 1000, 3, image > -900).astype(np.float32) if kind == "labels" else image
    )
    array = normalize_percentiles(image)
    assert darken_padding(array, image) is array
