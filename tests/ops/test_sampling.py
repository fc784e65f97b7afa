import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.autograd import gradcheck, gradgradcheck

from regnet_lab import ops
from regnet_lab.ops import sampling
from tests.helpers.fields import (
    displacement_between_voxels,
    find_inside,
    random_field,
    random_image,
)

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
SMALL = pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3)])


def scipy_warp(image, u, **options):
    grid = np.indices(u.shape[2:])
    cases = zip(image.numpy(), u.numpy(), strict=True)
    warped = [[map_coordinates(c, grid + d, **options) for c in m] for m, d in cases]
    return torch.from_numpy(np.array(warped))


@SHAPES
@pytest.mark.parametrize(("padding", "mode"), [("border", "nearest"), ("zeros", "grid-constant")])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_warp_agrees_with_scipy_inside_and_outside(shape, padding, mode, interpolation, order):
    image, u = random_image(shape, channels=2, batch=2), random_field(shape, 4.0, sigma=0, batch=2)
    assert 0.1 < find_inside(u[:1]).double().mean() < 0.9
    expected = scipy_warp(image, u, order=order, mode=mode)
    torch.testing.assert_close(ops.warp(image, u, interpolation, padding), expected)


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9), (193, 6), (64, 3, 5)])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_the_zero_field_is_the_identity_up_to_the_last_voxel(shape, padding):
    image = random_image(shape, channels=2)
    labels = (image > 0).long() * 7 + (image > 1).long()
    zero = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    torch.testing.assert_close(ops.warp(image, zero, padding=padding), image, rtol=0, atol=1e-12)
    single = ops.warp(image.float(), zero.float(), padding=padding)
    torch.testing.assert_close(single, image.float(), rtol=0, atol=2e-4 if 193 in shape else 1e-5)
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float32):
        warped = ops.warp(labels.to(dtype), zero.float(), "nearest", padding)
        assert warped.dtype == dtype
        assert torch.equal(warped, labels.to(dtype))


@SHAPES
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("step", [2, -1])
def test_a_whole_voxel_shift_moves_along_its_own_axis(shape, mode, step):
    image = random_image(shape)
    for axis, n in enumerate(shape):
        u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
        u[:, axis] = step
        source = torch.arange(n) + step
        expected = image.index_select(axis + 2, source.clamp(0, n - 1))
        torch.testing.assert_close(ops.warp(image, u, mode), expected)
        outside = ((source < 0) | (source >= n)).view(-1, *[1] * (len(shape) - axis - 1))
        zeroed = expected.masked_fill(outside, 0)
        torch.testing.assert_close(ops.warp(image, u, mode, "zeros"), zeroed)


@SHAPES
def test_the_warped_image_lies_on_the_grid_of_the_field(shape):
    image, u = random_image(shape), random_field([n + 2 for n in shape], 1.0)
    expected = scipy_warp(image, u, order=1, mode="nearest")
    torch.testing.assert_close(ops.warp(image, u), expected)


@SHAPES
@pytest.mark.parametrize(("padding", "mode"), [("border", "nearest"), ("zeros", "grid-constant")])
def test_sampling_at_a_list_of_points_agrees_with_scipy(shape, padding, mode):
    image = random_image(shape, channels=3, batch=2)
    points = torch.from_numpy(
        np.random.default_rng(3).uniform(-2, np.array(shape) + 1, (2, 13, len(shape)))
    )
    expected = [
        np.stack([map_coordinates(c, p.T, order=1, mode=mode) for c in m], -1)
        for m, p in zip(image.numpy(), points.numpy(), strict=True)
    ]
    sampled = ops.sample_at(image, points, padding)
    torch.testing.assert_close(sampled, torch.from_numpy(np.array(expected)))


def test_all_arguments_can_be_keywords():
    image, points = random_image((5, 6)), torch.full((1, 2, 3, 3), 2.0, dtype=torch.float64)
    assert torch.equal(ops.sample(image=image, points=points), ops.sample(image, points))


@SMALL
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_the_warp_can_be_differentiated_twice(shape, padding):
    image = random_image(shape, channels=2).requires_grad_()

    def warped(m, u):
        return ops.warp(m, u, padding=padding)

    inputs = (image, displacement_between_voxels(shape, 1))
    assert gradcheck(warped, inputs)
    assert gradgradcheck(warped, inputs)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@SHAPES
def test_deterministic_sampling_equals_grid_sample(shape, padding):
    """Values and gradients agree, also outside the image."""
    ndim = len(shape)
    image = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    reach = torch.tensor(shape).view(1, -1, *[1] * ndim) + 4
    spread = torch.rand(2, ndim, *[n + 2 for n in shape], dtype=torch.float64)
    points = (spread * reach - 2.5).requires_grad_()
    cotangent = torch.randn(2, 3, *spread.shape[2:], dtype=torch.float64)
    results = []
    for sample in (ops.sample, sampling._sample_deterministically):
        value = sample(image, points, padding)
        results.append([value, *torch.autograd.grad((value * cotangent).sum(), [image, points])])
    for usual, deterministic in zip(*results, strict=True):
        torch.testing.assert_close(deterministic, usual, atol=1e-10, rtol=1e-10)


@SHAPES
def test_deterministic_sampling_can_be_differentiated_twice(shape):
    small = [3] * len(shape)
    image = torch.randn(1, 1, *small, dtype=torch.float64, requires_grad=True)
    spread = torch.rand(1, len(shape), *[2] * len(shape), dtype=torch.float64)
    points = (0.1 + 0.8 * spread + (spread > 0.5)).requires_grad_()  # on no edge between voxels
    assert gradgradcheck(
        lambda a, b: sampling._sample_deterministically(a, b, "border"), (image, points)
    )


@SHAPES
def test_deterministic_sampling_at_the_voxels_is_the_identity(shape):
    image = torch.randn(1, 2, *shape)
    sampled = sampling._sample_deterministically(image, ops.identity_grid(shape, image), "border")
    assert torch.equal(sampled, image)


@SHAPES
def test_deterministic_warping_equals_warping(shape, monkeypatch):
    image, u = random_image(shape, channels=2), random_field(shape, 2.0)
    usual = ops.warp(image, u)
    monkeypatch.setattr(sampling, "_needs_deterministic_backward", lambda points: True)
    monkeypatch.setattr(sampling.F, "grid_sample", None)
    torch.testing.assert_close(ops.warp(image, u), usual, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("depth", [8, 9, 7])
def test_cutting_a_volume_into_slabs_for_several_threads_changes_nothing(depth):
    image, u = random_image((7, 8, 9), channels=2).float(), random_field((depth, 8, 9), 1.0).float()
    fields = [u.clone().requires_grad_() for _ in range(2)]
    warped = []
    try:
        for threads, each in zip((1, 3), fields, strict=True):
            torch.set_num_threads(threads)
            warped.append(ops.warp(image, each))
            warped[-1].square().sum().backward()
    finally:
        torch.set_num_threads(1)
    assert torch.equal(*warped)
    torch.testing.assert_close(fields[0].grad, fields[1].grad, rtol=1e-6, atol=0)
