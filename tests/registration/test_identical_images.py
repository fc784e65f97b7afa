"""Images that are the same stay where they are; a shift by whole voxels is found exactly."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.losses import Diffusion, Similarity
from regnet_lab.ops.similarity import local_ncc
from regnet_lab.registration.instance_optimization import FieldOptimizer
from regnet_lab.registration.mapping import warp_array
from regnet_lab.registration.pipeline import RegistrationPipeline
from regnet_lab.registration.quality import assess_quality
from regnet_lab.spatial.image_grid import transform_to_field
from regnet_lab.spatial.learn2reg import field_to_displacement
from regnet_lab.spatial.linear_alignment import LinearAlignment


class Restless(nn.Module):
    """A model that moves everything by almost a voxel."""

    def forward(self, fixed, moving):
        return [torch.full((1, fixed.ndim - 2, *fixed.shape[2:]), 0.6)]


def make_default_pipeline():
    """Return a pipeline of the default terms, with fewer steps and a model that is wrong."""
    measure = partial(local_ncc, window=7, padding="replicate", epsilon=0.0, noise=0.03)
    losses = {"similarity": Similarity(measure), "smoothness": Diffusion(weight=0.5)}
    return RegistrationPipeline(
        Restless(), LinearAlignment(), FieldOptimizer(losses, steps=[8, 8], decay=0.5)
    )


def register(fixed, moving, spacing=(1.0, 1.0, 1.0)):
    """Return the displacement (D, *spatial) in voxels, the linear map included, and the result."""
    affine = np.diag([*spacing, 1.0])
    result = make_default_pipeline()(LoadedCase(fixed, affine), LoadedCase(moving, affine))
    deformation = result.deformation
    field = transform_to_field(deformation.forward, deformation.fixed)
    return np.moveaxis(field_to_displacement(field, deformation.moving), -1, 0), result


def ellipsoids(shape):
    """Return two ellipsoids in black."""
    x = (np.indices(shape) + 0.5) / np.reshape(shape, (-1, *[1] * len(shape))) - 0.5
    outer, inner = (x / 0.3) ** 2, ((x - 0.05) / 0.1) ** 2
    return ((outer.sum(0) < 1) * 600.0 + (inner.sum(0) < 1) * 400.0).astype(np.float32)


def blurred(shape):
    return ndimage.gaussian_filter(ellipsoids(shape), 1.5)


def binary(shape):
    return (ellipsoids(shape) > 0).astype(np.float32)


def texture(shape):
    noise = np.random.default_rng(0).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 44), (26, 28, 24)])
@pytest.mark.parametrize("kind", [ellipsoids, blurred, binary, texture])
def test_an_image_registered_to_itself_stays(kind, shape):
    image = kind(shape)
    displacement, _ = register(image, image.copy())
    assert np.linalg.norm(displacement, axis=0).mean() < 1e-6


@pytest.mark.parametrize("shape", [(40, 44), (26, 28, 24)])
@pytest.mark.parametrize("kind", [ellipsoids, blurred, binary])
def test_a_shift_by_whole_voxels_is_found(kind, shape):
    image, shift = kind(shape), (2, -3, 1)[: len(shape)]
    moving = ndimage.shift(image, shift, order=0, mode="constant", cval=0)
    displacement, _ = register(image, moving)
    error = displacement - np.reshape(shift, (-1, *[1] * len(shape)))
    assert np.linalg.norm(error, axis=0)[image > 0].mean() < 0.05


@pytest.mark.parametrize("slices", [1, 2, 3, 6])
def test_a_volume_of_few_slices_is_registered(slices):
    image = np.ascontiguousarray(blurred((40, 44, 14))[..., 5 : 5 + slices])
    displacement, result = register(image, image.copy(), (1, 1, 5))
    assert np.linalg.norm(displacement, axis=0).mean() < 1e-6
    moving = ndimage.shift(image, (2, -3, 0), order=0, mode="nearest")
    displacement, result = register(image, moving, (1, 1, 5))
    error = displacement - np.reshape((2, -3, 0), (3, 1, 1, 1))
    assert np.linalg.norm(error, axis=0).mean() < 0.05
    case = LoadedCase(image, result.deformation.fixed.affine)
    assert np.isfinite(assess_quality(result, case, case)["inverse_error_mean_mm"])


def test_a_real_difference_is_still_registered():
    image = ellipsoids((40, 44))
    wider = ndimage.zoom(image, (1.0, 1.2), order=0)[:, 4:48]
    _, result = register(image, wider)
    assert np.abs(result.displacement.numpy()).max() > 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16])
def test_a_warped_image_keeps_the_extremes_of_its_type(dtype):
    image = ellipsoids((40, 44))
    _, result = register(image, image.copy())
    limits = np.iinfo(dtype)
    original = np.where(image > 0, limits.max, limits.min).astype(dtype)
    warped = warp_array(original, result.deformation)
    assert warped.dtype == dtype
    np.testing.assert_allclose(warped.astype(float), original.astype(float), atol=1e-5 * limits.max)
