"""Linear alignment in the world."""

import numpy as np
import pytest

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.linear_alignment import IdentityAlignment, ImagePair, LinearAlignment
from tests.helpers.geometry import affine_matrix
from tests.helpers.registration import make_cases, make_grids, render_texture


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_known_affine_is_recovered(ndim):
    expected = affine_matrix((0, 0, 12), (1.05, 0.97, 1), (2, -3, 0))
    fixed, moving = make_grids(ndim)
    images = (
        render_texture(fixed, sigma=3),
        render_texture(moving, sigma=3, move=np.linalg.inv(expected)),
    )
    pair = ImagePair(
        coordinates.array_to_sitk(images[0], fixed.affine),
        coordinates.array_to_sitk(images[1], moving.affine),
    )
    matrix = LinearAlignment(shrink_factors=(2, 1))(pair)
    points = np.random.default_rng(0).uniform(-8, 8, (20, ndim))
    points = np.pad(points, ((0, 0), (0, 3 - ndim)))
    error = coordinates.apply_affine(matrix, points) - coordinates.apply_affine(expected, points)
    assert np.linalg.norm(error, axis=1).max() < 1.0


def test_a_rigid_alignment_preserves_distances():
    fixed, moving = make_cases(3, affine_matrix((0, 5, 10), (1.1, 1, 1), (1, 1, 0)))
    pair = ImagePair(*(coordinates.array_to_sitk(c.image, c.affine) for c in (fixed, moving)))
    linear = LinearAlignment(["rigid"], shrink_factors=(4, 2))(pair)[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)


def test_image_centers_are_aligned_wherever_the_headers_place_them():
    fixed, moving = make_cases(3)
    far = moving.affine.copy()
    far[:3, 3] += 500
    pair = ImagePair(
        coordinates.array_to_sitk(fixed.image, fixed.affine),
        coordinates.array_to_sitk(moving.image, far),
    )
    matrix = LinearAlignment([], "geometry")(pair)
    np.testing.assert_allclose(matrix[:3, 3], 500, atol=1e-6)
    with pytest.raises(UserError, match="do not overlap"):
        LinearAlignment([])(pair)
    with pytest.raises(UserError, match="do not overlap"):
        IdentityAlignment()(pair)
