"""Padding is told from a background by its shape, and filled from what was seen."""

import numpy as np
import pytest
from scipy import ndimage

from regnet_lab.data.preprocessing.padding import extend_valid_region, find_valid_region
from tests.helpers.geometry import rotate_with_padding


def texture(shape, seed=0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) + 5


@pytest.mark.parametrize("degrees", [(20, -15, 30), (0, 0, 45), (-44, 10, 5)])
@pytest.mark.parametrize("shape", [(40, 33), (28, 33, 24), (30, 30, 30)])
def test_padding_around_a_rotated_image_is_found_and_filled(shape, degrees):
    image, inside, values, _ = rotate_with_padding(texture(shape), degrees, (0.9, 1.1, 0.8))
    valid = find_valid_region(image)
    assert not (valid & ~inside).any()
    core = ndimage.binary_erosion(inside, border_value=True)
    assert (valid & core).sum() > 0.98 * core.sum()
    filled = extend_valid_region(image, valid)
    assert np.array_equal(filled[valid], image[valid])
    near = ndimage.binary_dilation(inside, iterations=3) & ~valid
    assert np.abs(filled - values)[near].mean() < 0.1 * np.ptp(values)  # the border continued
    assert np.abs(image - values)[near].mean() > 0.5 * np.ptp(values)


@pytest.mark.parametrize("shape", [(40, 33), (28, 33, 24)])
def test_an_axis_aligned_frame_is_padding(shape):
    image = np.zeros(shape)
    where = tuple(slice(4, n - 6) for n in shape)
    image[where] = texture([n - 10 for n in shape])
    image[tuple(n // 2 for n in shape)] = 0  # seen, though it has the same value
    valid = np.zeros(shape, bool)
    valid[tuple(slice(5, n - 7) for n in shape)] = True
    np.testing.assert_array_equal(find_valid_region(image), valid)


@pytest.mark.parametrize("shape", [(40, 33), (28, 33, 24)])
def test_a_round_object_on_a_constant_background_has_no_padding(shape):
    x = np.indices(shape) - (np.reshape(shape, (-1, *[1] * len(shape))) - 1) / 2
    radius = 0.4 * np.reshape(shape, (-1, *[1] * len(shape)))
    image = texture(shape) * (((x / radius) ** 2).sum(0) < 1)
    assert find_valid_region(image).all()


@pytest.mark.parametrize("image", [texture((9, 11)), np.zeros((9, 11)), np.eye(8)])
def test_an_image_without_padding_is_valid_everywhere(image):
    valid = find_valid_region(image)
    assert valid.all()
    assert extend_valid_region(image, valid) is image
