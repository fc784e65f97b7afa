"""Warnings about sizes of images that are no sizes of bodies."""

import numpy as np
import pytest

from regnet_lab.spatial.image_grid import ImageGrid, warn_about_units


def make_grid(spacing, shape=(10, 20, 30)):
    """Return a grid of a spacing in mm."""
    affine = np.diag([*spacing, *[1] * (4 - len(spacing))]).astype(float)
    return ImageGrid(shape[: len(spacing)], affine)


@pytest.mark.parametrize(
    ("fixed", "moving", "words"),
    [
        ((1, 1, 1), (1.4, 1, 2.9), []),
        ((1, 1), (2.9, 1), []),
        ((0.0009999999, 0.001), (0.001, 0.001), []),
        ((1, 1, 1), (0.1, 0.1, 0.1), ["10 x 20 x 30 mm", "1 x 2 x 3 mm"]),
        ((1, 1, 1), (1, 1, 3), ["10 x 20 x 30 mm", "10 x 20 x 90 mm"]),
        ((1, 1), (3, 3), ["10 x 20 mm", "30 x 60 mm"]),
        ((25, 25, 25), (25, 25, 25), ["fixed image has voxels of 25", "moving image has voxels"]),
        ((1e-4, 1e-4), (1e-4, 1e-4), ["fixed image has voxels of 0.0001 x 0.0001 mm"]),
    ],
)
def test_unlikely_sizes_are_named(caplog, fixed, moving, words):
    warn_about_units(make_grid(fixed), make_grid(moving))
    text = " ".join(caplog.messages)
    assert bool(text) == bool(words)
    for word in words:
        assert word in text


def test_a_turned_image_has_the_same_size(caplog):
    long = ImageGrid((10, 100, 50), np.eye(4))
    turned = ImageGrid((100, 50, 10), np.eye(4))
    warn_about_units(long, turned)
    assert not caplog.messages
