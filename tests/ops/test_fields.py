import itertools

import numpy as np
import pytest
import SimpleITK
import torch
from scipy.linalg import expm
from torch.autograd import gradcheck, gradgradcheck

from regnet_lab import ops
from tests.helpers.fields import (
    displacement_between_voxels,
    find_inside,
    make_affine_field,
    random_field,
    skew_matrix,
)

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
LARGE = pytest.mark.parametrize("shape", [(20, 23), (16, 17, 19)])
SMALL = pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3)])


@SHAPES
def test_composing_affine_fields_multiplies_their_matrices(shape):
    a, b = skew_matrix(len(shape)), -skew_matrix(len(shape)).T
    first, then = make_affine_field(a, shape), make_affine_field(b, shape)
    eye = np.eye(len(shape))
    product = make_affine_field((eye + b) @ (eye + a) - eye, shape)
    at = find_inside(first)
    torch.testing.assert_close(ops.compose(first, then)[..., at], product[..., at])
    assert (ops.compose(then, first) - product)[..., at].abs().max() > 0.1


@LARGE
def test_composing_is_warping_twice(shape):
    image = make_affine_field(np.ones((1, len(shape))) * np.arange(1, len(shape) + 1), shape)
    first, then = random_field(shape, 0.4, seed=1), random_field(shape, 0.4, seed=2)
    core = (..., *[slice(5, -5)] * len(shape))  # a linear image and no border: nothing is lost
    assert max(first.abs().max(), then.abs().max()) < 2.5
    once = ops.warp(image, ops.compose(first, then))[core]
    twice = ops.warp(ops.warp(image, then), first)[core]
    torch.testing.assert_close(once, twice)
    wrong = ops.warp(image, ops.compose(then, first))[core]
    assert (wrong - twice).abs().max() > 0.05


@SHAPES
def test_integrating_a_constant_velocity_returns_it(shape):
    v = torch.arange(1.0, len(shape) + 1).view(1, -1, *[1] * len(shape)).expand(-1, -1, *shape)
    torch.testing.assert_close(ops.integrate(v), v)


@LARGE
def test_integrating_a_linear_velocity_is_the_matrix_exponential(shape):
    matrix, eye = skew_matrix(len(shape)), np.eye(len(shape))
    v, flow = make_affine_field(matrix, shape), make_affine_field(expm(matrix) - eye, shape)
    core = (..., *[slice(4, -4)] * len(shape))
    errors = [(ops.integrate(v, steps) - flow)[core].abs().max() for steps in (4, 7, 12)]
    assert errors[1] < 0.02
    assert errors[2] < 1e-3
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert (v - flow)[core].abs().max() > 0.3


@LARGE
def test_forward_and_backward_integration_cancel(shape):
    v = random_field(shape, 1.0)
    core = (..., *[slice(3, -3)] * len(shape))
    assert ops.compose(ops.integrate(v), ops.integrate(-v))[core].abs().max() < 0.1
    assert ops.compose(v, -v)[core].abs().max() > 0.3


@LARGE
def test_a_smooth_field_composed_with_its_inverse_is_the_identity(shape):
    u = random_field(shape, 0.6, batch=2)
    v = ops.invert(u)
    assert ops.compose(v, u).abs().max() < 2e-4
    assert (u + v).abs().max() > 0.2  # the inverse is not the negative
    assert ops.compose(ops.invert(u, iterations=1), u).abs().max() > 1e-3


@LARGE
@pytest.mark.parametrize("stretch", [1.5, 3.0])
def test_fields_with_slopes_above_one_are_inverted(shape, stretch):
    center = (torch.tensor(shape).double() - 1).view(1, -1, *[1] * len(shape)) / 2
    x = ops.identity_grid(shape, center) - center
    v = ops.invert(stretch * x)  # x -> (1 + stretch) x, where the fixed point diverges
    assert torch.allclose(v, -stretch / (1 + stretch) * x, atol=1e-4)


@SHAPES
def test_the_inverse_of_an_affine_field_is_its_inverse_matrix(shape):
    eye = np.eye(len(shape))
    u = make_affine_field(skew_matrix(len(shape)), shape)
    inverse = make_affine_field(np.linalg.inv(eye + skew_matrix(len(shape))) - eye, shape)
    at = find_inside(inverse)
    assert at.double().mean() > 0.3
    error = (ops.invert(u, tolerance=1e-9) - inverse)[..., at]
    assert error.abs().max() < 1e-7


@SHAPES
def test_an_affine_field_has_its_matrix_as_gradient_everywhere(shape):
    matrix = torch.from_numpy(skew_matrix(len(shape)))
    u = make_affine_field(matrix.numpy(), shape)
    for slope in (ops.gradient(u), ops.forward_difference(u)):
        expected = matrix.view(*matrix.shape, *[1] * len(shape)).expand(slope.shape[1:])
        torch.testing.assert_close(slope[0], expected)


def waves(shape, offset=0.0):
    """One sine along each axis, and its slope's angle, all broadcast over the grid."""
    x = np.indices(shape) + offset
    rate = 0.3 + 0.2 * np.arange(len(shape)).reshape(-1, *[1] * len(shape))
    return rate, rate * x + 0.4


@SHAPES
def test_differences_of_sines_are_cosines(shape):
    rate, angle = waves(shape)
    x = torch.from_numpy(np.sin(angle))[None]
    central, forward = ops.gradient(x)[0].numpy(), ops.forward_difference(x)[0].numpy()
    phase = waves(shape, 0.5)[1]
    core, ahead = (slice(1, -1),) * len(shape), (slice(None, -1),) * len(shape)
    for c, axis in itertools.product(range(len(shape)), repeat=2):
        along = float(c == axis)
        slope, step = np.sin(rate[c]), 2 * np.sin(rate[c] / 2)
        np.testing.assert_allclose(
            central[(c, axis, *core)], along * slope * np.cos(angle[c])[core], atol=1e-12
        )
        np.testing.assert_allclose(
            forward[c, axis], along * step * np.cos(phase[c])[ahead], atol=1e-12
        )


@SHAPES
@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_the_jacobian_determinant_of_an_affine_field_is_that_of_its_matrix(shape, scheme):
    matrix = skew_matrix(len(shape)) * 3
    determinant = ops.jacobian_determinant(make_affine_field(matrix, shape), scheme)
    assert determinant.shape[1:] == tuple(n - (scheme == "forward") for n in shape)
    expected = np.linalg.det(np.eye(len(shape)) + matrix)
    np.testing.assert_allclose(determinant, expected, rtol=1e-9)


@SHAPES
def test_the_jacobian_determinant_of_crossed_sines_is_their_product(shape):
    ndim = len(shape)
    rate, angle = waves(shape)
    u = torch.from_numpy(np.roll(np.sin(angle), -1, axis=0))[None]  # u_i waves along axis i + 1
    slopes = np.sin(rate) * np.cos(angle)
    expected = 1 + (-1) ** (ndim - 1) * slopes.prod(0)
    core = (slice(1, -1),) * ndim
    np.testing.assert_allclose(ops.jacobian_determinant(u)[0][core], expected[core])


@SHAPES
def test_the_jacobian_determinant_agrees_with_simpleitk(shape):
    u = random_field(shape, 0.8, sigma=1.5)
    spacing = np.array([0.7, 1.9, 3.1])[: len(shape)]
    backwards = np.moveaxis(u[0].numpy(), 0, -1)[..., ::-1] * spacing[::-1]  # ITK: x is last
    image = SimpleITK.GetImageFromArray(backwards, isVector=True)
    image.SetSpacing(spacing[::-1].tolist())
    expected = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(image))
    core = (slice(1, -1),) * len(shape)
    assert expected[core].std() > 0.1
    np.testing.assert_allclose(ops.jacobian_determinant(u)[0][core], expected[core], rtol=1e-4)


@SHAPES
def test_only_forward_differences_detect_a_fold_one_voxel_wide(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[:, 1, :, 4] = 1.2
    assert ops.jacobian_determinant(u, "central").min() == pytest.approx(0.4)
    folded = ops.jacobian_determinant(u, "forward")
    assert folded[:, :, 4].numpy() == pytest.approx(-0.2)
    assert (folded < 0).sum() == folded[:, :, 4].numel()


@pytest.mark.parametrize("ndim", [2, 3])
def test_transforming_points_applies_the_homogeneous_matrix(ndim):
    rng = np.random.default_rng(0)
    matrix, points = rng.normal(size=(2, ndim + 1, ndim + 1)), rng.normal(size=(2, 5, ndim))
    matrix[:, -1] = np.eye(ndim + 1)[-1]
    lifted = np.concatenate([points, np.ones((2, 5, 1))], -1)
    expected = np.stack([(m @ p.T).T[:, :-1] for m, p in zip(matrix, lifted, strict=True)])
    batch = ops.transform_points(torch.from_numpy(matrix), torch.from_numpy(points))
    np.testing.assert_allclose(batch, expected)
    single = ops.transform_points(torch.from_numpy(matrix[0]), torch.from_numpy(points[0]))
    np.testing.assert_allclose(single, expected[0])


@SHAPES
def test_affine_field_agrees_with_numpy(shape):
    ndim = len(shape)
    shift = np.arange(1.0, ndim + 1)
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] += skew_matrix(ndim)
    matrix[:ndim, -1] = shift
    fields = ops.affine_field(torch.from_numpy(np.stack([np.eye(ndim + 1), matrix])), shape)
    assert fields[0].abs().max() == 0
    around = -np.linalg.solve(skew_matrix(ndim), shift)  # A (x - center) = A x + t
    torch.testing.assert_close(fields[1:], make_affine_field(skew_matrix(ndim), shape, around))


@SMALL
@pytest.mark.parametrize(
    "function",
    [
        lambda u: ops.compose(u, u),
        lambda u: ops.integrate(u, 2),
        lambda u: ops.jacobian_determinant(u, "central"),
        lambda u: ops.jacobian_determinant(u, "forward"),
        lambda u: ops.resize_field(u, [n + 2 for n in u.shape[2:]]),
        lambda u: ops.resize_field(u, [n - 1 for n in u.shape[2:]]),
    ],
    ids=["compose", "integrate", "central", "forward", "up", "down"],
)
def test_field_algebra_can_be_differentiated_twice(shape, function):
    u = displacement_between_voxels(shape, 2)
    assert gradcheck(function, (u,))
    assert gradgradcheck(function, (u,))


@SHAPES
def test_determinants_agree_with_numpy(shape):
    ndim = len(shape)
    matrix = torch.randn(2, ndim, ndim, *shape, dtype=torch.float64)
    expected = np.linalg.det(np.moveaxis(matrix.numpy(), (1, 2), (-2, -1)))
    torch.testing.assert_close(ops.determinant(matrix), torch.from_numpy(expected))
