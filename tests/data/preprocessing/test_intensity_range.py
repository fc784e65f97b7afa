"""The range of intensities follows the content of an image, not what surrounds it."""

import numpy as np
import pytest

from regnet_lab.data.preprocessing.functional import normalize_min_max, normalize_percentiles
from regnet_lab.data.preprocessing.intensity_range import compute_intensity_range
from regnet_lab.data.preprocessing.padding import find_padding, find_padding_value


def make_content(shape=(48, 48), seed=0):
    """Return values between 100 and 900, none of them twice."""
    return np.random.default_rng(seed).uniform(100, 900, shape).astype(np.float32)


def find_disc(shape):
    x = np.indices(shape) - (np.reshape(shape, (-1, *[1] * len(shape))) - 1) / 2
    return (x**2).sum(0) < (min(shape) / 2 - 1) ** 2


def cut_round(image, value):
    return np.where(find_disc(image.shape), image, np.float32(value)), find_disc(image.shape)


def cut_slab(image, value):
    inside = np.ones(image.shape, bool)
    inside[: image.shape[0] // 4] = False
    return np.where(inside, image, np.float32(value)), inside


def cut_frame(image, value):
    inside = np.zeros(image.shape, bool)
    inside[(slice(5, -5),) * image.ndim] = True
    return np.where(inside, image, np.float32(value)), inside


@pytest.mark.parametrize("value", [-3024, 0, 5000, np.nan])
@pytest.mark.parametrize("cut", [cut_round, cut_slab, cut_frame])
@pytest.mark.parametrize("shape", [(48, 48), (16, 17, 18)])
def test_padding_of_any_value_and_shape_has_no_part_in_the_range(shape, cut, value):
    image, inside = cut(make_content(shape), value)
    np.testing.assert_array_equal(find_padding(image), ~inside)
    expected = np.percentile(image[inside], [0.5, 99.5])
    np.testing.assert_allclose(compute_intensity_range(image, 0.5, 99.5), expected, rtol=1e-6)


def test_values_within_the_object_that_equal_the_padding_belong_to_the_object():
    image, inside = cut_round(make_content(), 0)
    image[20:24, 20:24] = 0
    np.testing.assert_array_equal(find_padding(image), ~inside)


def test_an_image_without_padding_has_its_percentiles():
    image = make_content()
    assert find_padding_value(image) is None
    assert not find_padding(image).any()
    np.testing.assert_allclose(
        compute_intensity_range(image, 0.5, 99.5), np.percentile(image, [0.5, 99.5]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("levels", "background"), [([1], 0), ([1, 2, 3], 0), ([2, 7], 9), ([0, 1], None), ([255], 0)]
)
def test_no_level_of_a_label_map_or_a_binary_image_vanishes(levels, background):
    image = np.random.default_rng(0).choice(levels, (40, 40)).astype(np.float32)
    if background is not None:
        image = np.where(find_disc(image.shape), image, np.float32(background))
    values = np.unique(image)
    normalized = normalize_percentiles(image)
    expected = (image - values[0]) / (values[-1] - values[0])
    np.testing.assert_allclose(normalized, expected, atol=1e-6)


def test_padding_far_from_the_levels_of_a_phantom_leaves_them_apart():
    image, inside = cut_round(
        np.random.default_rng(0).choice([0.0, 100.0, 200.0], (40, 40)).astype(np.float32), -3024
    )
    normalized = normalize_percentiles(image)
    np.testing.assert_allclose(np.unique(normalized[inside]), [0.5, 0.75, 1.0])
    assert (normalized[~inside] == 0).all()


def test_coinciding_percentiles_give_way_to_the_extremes():
    image = np.full((64, 64), 7, np.float32)  # in 97 % of the voxels
    image[31, 5:45] = np.linspace(7, 9, 40)
    image[0], image[-1] = np.linspace(7.1, 8, 64), np.linspace(8.1, 7.2, 64)
    assert find_padding_value(image) is None
    assert compute_intensity_range(image, 5, 95) == (7, 9)


def test_a_reference_image_may_have_voxels_without_a_value():
    image, holed = make_content(), make_content()
    holed[:, 30:] = np.nan
    low, high = np.percentile(holed[:, :30], [0.5, 99.5])
    expected = np.clip((image - low) / (high - low), 0, 1)
    np.testing.assert_allclose(normalize_percentiles(image, like=holed), expected, atol=1e-6)
    low, high = holed[:, :30].min(), holed[:, :30].max()
    expected = np.clip((image - low) / (high - low), 0, 1)
    np.testing.assert_allclose(normalize_min_max(image, like=holed), expected, atol=1e-6)
