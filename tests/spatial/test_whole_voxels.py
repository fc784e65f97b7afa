"""Linear alignment of images that are the same, and of thin volumes."""

import numpy as np
import pytest
from scipy import ndimage

from regnet_lab.spatial import coordinates
from regnet_lab.spatial.linear_alignment import ImagePair, LinearAlignment
from regnet_lab.spatial.whole_voxels import SampledPair, match_exactly, prefer_whole_voxels
from tests.helpers.geometry import affine_matrix


def texture(shape, sigma=2.0):
    noise = np.random.default_rng(0).normal(size=shape)
    return ndimage.gaussian_filter(noise, [sigma, sigma, 0.7][: len(shape)]).astype(np.float32)


def disc(shape):
    x = np.indices(shape) - np.reshape(shape, (-1, *[1] * len(shape))) / 2
    return ((x / (0.3 * min(shape))) ** 2).sum(0) < 1


def move(image, shift):
    """Shift an image by whole voxels, its border repeated."""
    return ndimage.shift(image, shift, order=0, mode="nearest")


def align(fixed, moving, affine):
    """Return the map of voxels that the default alignment finds."""
    pair = ImagePair(*(coordinates.array_to_sitk(image, affine) for image in (fixed, moving)))
    matrix = np.linalg.inv(affine) @ LinearAlignment()(pair) @ affine
    return coordinates.restrict_to_axes(matrix, fixed.ndim)


def expected_map(shift):
    expected = np.eye(len(shift) + 1)
    expected[:-1, -1] = shift
    return expected


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -2, 1)])
@pytest.mark.parametrize("shape", [(40, 36), (32, 30, 28)])
@pytest.mark.parametrize("kind", [texture, lambda shape: disc(shape).astype(np.float32)])
def test_the_same_image_is_aligned_exactly(kind, shape, shift):
    image, shift = kind(shape), shift[: len(shape)]
    degrees = (10, -20, 30) if len(shape) == 3 else (0, 0, 30)
    affine = affine_matrix(degrees, (0.9, 1.1, 1.3), (5, -60, 0))
    np.testing.assert_allclose(
        align(image, move(image, shift), affine), expected_map(shift), atol=1e-9
    )


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, -3, 0)])
@pytest.mark.parametrize("slices", [1, 2, 3, 5, 6, 12])
def test_a_volume_of_any_number_of_slices_is_aligned(slices, shift):
    image, affine = texture((48, 56, slices)), affine_matrix((5, 8, 0), (1, 1, 4), (3, 4, 5))
    np.testing.assert_allclose(
        align(image, move(image, shift), affine), expected_map(shift), atol=1e-9
    )


def test_a_thin_volume_is_not_sheared_along_its_thin_axis():
    image, affine = texture((48, 56, 2)), np.diag([1.0, 1, 5, 1])
    noisy = move(image, (1, 2, 0)) + 0.1 * image.std() * texture((48, 56, 2), 0.5)
    np.testing.assert_allclose(align(image, noisy, affine)[:, 2], [0, 0, 1, 0], atol=1e-9)


def test_a_flipped_image_is_recognized_and_a_different_one_is_not():
    image = texture((30, 34))
    affine, flipped = np.eye(4), np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 29
    near = affine_matrix((0, 0, 2), (1.02, 1, 1), (0.2, -0.3, 0))

    def prefer(moving, moving_affine):
        images = (image, affine), (moving, moving_affine)
        pair = SampledPair(*(coordinates.array_to_sitk(*each) for each in images))
        return prefer_whole_voxels(pair, near, [np.eye(4)])

    stored = np.ascontiguousarray(image[::-1])
    np.testing.assert_allclose(prefer(stored, flipped), np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(prefer(texture((30, 34), 3.0), affine), near)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_two_parts_of_one_image_match_exactly(ndim, scale):
    rng = np.random.default_rng(0)
    whole = ndimage.gaussian_filter(rng.normal(size=(40,) * ndim), 2).astype(np.float32)
    fixed, moving = whole[(slice(5, 35),) * ndim], whole[(slice(2, 33),) * ndim]
    images = [coordinates.array_to_sitk(a, np.eye(4)) for a in (fixed, scale * moving + 7)]
    near = np.eye(4)
    near[:ndim, 3] = 3.3
    expected = np.eye(4)
    expected[:ndim, 3] = 3
    np.testing.assert_allclose(match_exactly(*images, near), expected)
    changed = moving.copy()
    changed[(slice(10, 14),) * ndim] += 0.5 * whole.std()
    images[1] = coordinates.array_to_sitk(changed, np.eye(4))
    assert match_exactly(*images, near) is None
