import itertools

import numpy as np
import pytest
import SimpleITK
import torch
import torch.nn.functional as F
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.autograd import gradcheck, gradgradcheck

from regnet_lab import ops

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
LARGE = pytest.mark.parametrize("shape", [(20, 23), (16, 17, 19)])
TURN = np.array([[-0.2, 0.3, 0.1], [-0.15, -0.1, 0.2], [0.05, -0.25, -0.3]])  # a skew contraction


def textured(shape, channels=1, batch=1, sigma=0.0, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    smooth = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(smooth / smooth.std())


def field(shape, deviation, sigma=3.0, batch=1, seed=1):
    return deviation * textured(shape, len(shape), batch, sigma, seed)


def affine(matrix, shape, centre=None):
    """u(x) = matrix (x - centre) on a grid, by numpy."""
    centre = (np.array(shape) - 1) / 2 if centre is None else centre
    x = np.moveaxis(np.indices(shape, dtype=float), 0, -1) - centre
    return torch.from_numpy(np.moveaxis(x @ matrix.T, -1, 0).copy())[None]


def turn(ndim):
    return TURN[:ndim, :ndim]


def inside(*fields):
    """Where x + u(x) stays on the grid for every field."""
    shape = fields[0].shape[2:]
    size = np.array(shape).reshape(-1, *[1] * len(shape)) - 1
    points = [u[0].numpy() + np.indices(shape) for u in fields]
    return torch.from_numpy(np.all([(p >= 0) & (p <= size) for p in points], axis=(0, 1)))


def scipy_warp(image, u, **options):
    grid = np.indices(u.shape[2:])
    cases = zip(image.numpy(), u.numpy(), strict=True)
    warped = [[map_coordinates(c, grid + d, **options) for c in m] for m, d in cases]
    return torch.from_numpy(np.array(warped))


@SHAPES
@pytest.mark.parametrize(("padding", "mode"), [("border", "nearest"), ("zeros", "grid-constant")])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_warp_agrees_with_scipy_inside_and_outside(shape, padding, mode, interpolation, order):
    image, u = textured(shape, channels=2, batch=2), field(shape, 4.0, sigma=0, batch=2)
    assert 0.1 < inside(u[:1]).double().mean() < 0.9
    expected = scipy_warp(image, u, order=order, mode=mode)
    torch.testing.assert_close(ops.warp(image, u, interpolation, padding), expected)


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9), (193, 6), (64, 3, 5)])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_the_zero_field_is_the_identity_to_the_last_voxel(shape, padding):
    image = textured(shape, channels=2)
    labels = (image > 0).long() * 7 + (image > 1).long()
    still = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
    torch.testing.assert_close(ops.warp(image, still, padding=padding), image, rtol=0, atol=1e-12)
    single = ops.warp(image.float(), still.float(), padding=padding)
    torch.testing.assert_close(single, image.float(), rtol=0, atol=2e-4 if 193 in shape else 1e-5)
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float32):
        kept = ops.warp(labels.to(dtype), still.float(), "nearest", padding)
        assert kept.dtype == dtype
        assert torch.equal(kept, labels.to(dtype))


@SHAPES
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("step", [2, -1])
def test_a_whole_voxel_shift_moves_along_its_own_axis(shape, mode, step):
    image = textured(shape)
    for axis, n in enumerate(shape):
        u = torch.zeros(1, len(shape), *shape, dtype=torch.float64)
        u[:, axis] = step
        source = torch.arange(n) + step
        expected = image.index_select(axis + 2, source.clamp(0, n - 1))
        torch.testing.assert_close(ops.warp(image, u, mode), expected)
        gone = ((source < 0) | (source >= n)).view(-1, *[1] * (len(shape) - axis - 1))
        emptied = expected.masked_fill(gone, 0)
        torch.testing.assert_close(ops.warp(image, u, mode, "zeros"), emptied)


@SHAPES
def test_the_warped_image_lies_on_the_grid_of_the_field(shape):
    image, u = textured(shape), field([n + 2 for n in shape], 1.0)
    expected = scipy_warp(image, u, order=1, mode="nearest")
    torch.testing.assert_close(ops.warp(image, u), expected)


@SHAPES
@pytest.mark.parametrize(("padding", "mode"), [("border", "nearest"), ("zeros", "grid-constant")])
def test_sampling_at_a_list_of_points_agrees_with_scipy(shape, padding, mode):
    image = textured(shape, channels=3, batch=2)
    points = torch.from_numpy(
        np.random.default_rng(3).uniform(-2, np.array(shape) + 1, (2, 13, len(shape)))
    )
    expected = [
        np.stack([map_coordinates(c, p.T, order=1, mode=mode) for c in m], -1)
        for m, p in zip(image.numpy(), points.numpy(), strict=True)
    ]
    sampled = ops.sample_at(image, points, padding)
    torch.testing.assert_close(sampled, torch.from_numpy(np.array(expected)))


def test_arguments_may_all_be_given_by_name():
    image, points = textured((5, 6)), torch.full((1, 2, 3, 3), 2.0, dtype=torch.float64)
    assert torch.equal(ops.sample(image=image, points=points), ops.sample(image, points))


@SHAPES
def test_composing_affine_fields_multiplies_their_matrices(shape):
    a, b = turn(len(shape)), -turn(len(shape)).T
    first, then = affine(a, shape), affine(b, shape)
    eye = np.eye(len(shape))
    product = affine((eye + b) @ (eye + a) - eye, shape)
    at = inside(first)
    torch.testing.assert_close(ops.compose(first, then)[..., at], product[..., at])
    assert (ops.compose(then, first) - product)[..., at].abs().max() > 0.1


@LARGE
def test_composing_is_warping_twice(shape):
    image = affine(np.ones((1, len(shape))) * np.arange(1, len(shape) + 1), shape)
    first, then = field(shape, 0.4, seed=1), field(shape, 0.4, seed=2)
    core = (..., *[slice(5, -5)] * len(shape))  # a linear image and no border: nothing is lost
    assert max(first.abs().max(), then.abs().max()) < 2.5
    once = ops.warp(image, ops.compose(first, then))[core]
    twice = ops.warp(ops.warp(image, then), first)[core]
    torch.testing.assert_close(once, twice)
    wrong = ops.warp(image, ops.compose(then, first))[core]
    assert (wrong - twice).abs().max() > 0.05


@SHAPES
def test_the_flow_of_a_constant_velocity_is_the_velocity(shape):
    v = torch.arange(1.0, len(shape) + 1).view(1, -1, *[1] * len(shape)).expand(-1, -1, *shape)
    torch.testing.assert_close(ops.integrate(v), v)


@LARGE
def test_the_flow_of_a_linear_velocity_is_the_matrix_exponential(shape):
    matrix, eye = turn(len(shape)), np.eye(len(shape))
    v, flow = affine(matrix, shape), affine(expm(matrix) - eye, shape)
    core = (..., *[slice(4, -4)] * len(shape))
    errors = [(ops.integrate(v, steps) - flow)[core].abs().max() for steps in (4, 7, 12)]
    assert errors[1] < 0.02
    assert errors[2] < 1e-3
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert (v - flow)[core].abs().max() > 0.3


@LARGE
def test_flows_forwards_and_backwards_cancel(shape):
    v = field(shape, 1.0)
    core = (..., *[slice(3, -3)] * len(shape))
    assert ops.compose(ops.integrate(v), ops.integrate(-v))[core].abs().max() < 0.1
    assert ops.compose(v, -v)[core].abs().max() > 0.3


@LARGE
def test_a_smooth_field_after_its_inverse_stays_put(shape):
    u = field(shape, 0.6, batch=2)
    v = ops.invert(u)
    assert ops.compose(v, u).abs().max() < 2e-4
    assert (u + v).abs().max() > 0.2  # the inverse is not the negative
    assert ops.compose(ops.invert(u, iterations=1), u).abs().max() > 1e-3


@LARGE
@pytest.mark.parametrize("stretch", [1.5, 3.0])
def test_a_field_steeper_than_a_voxel_per_voxel_has_its_inverse(shape, stretch):
    centre = (torch.tensor(shape).double() - 1).view(1, -1, *[1] * len(shape)) / 2
    x = ops.identity_grid(shape, centre) - centre
    v = ops.invert(stretch * x)  # x -> (1 + stretch) x, where the fixed point diverges
    assert torch.allclose(v, -stretch / (1 + stretch) * x, atol=1e-4)


@SHAPES
def test_the_inverse_of_an_affine_field_is_its_inverse_matrix(shape):
    eye = np.eye(len(shape))
    u = affine(turn(len(shape)), shape)
    inverse = affine(np.linalg.inv(eye + turn(len(shape))) - eye, shape)
    at = inside(inverse)
    assert at.double().mean() > 0.3
    error = (ops.invert(u, tolerance=1e-9) - inverse)[..., at]
    assert error.abs().max() < 1e-7


@SHAPES
def test_an_affine_field_has_its_matrix_as_gradient_everywhere(shape):
    matrix = torch.from_numpy(turn(len(shape)))
    u = affine(matrix.numpy(), shape)
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
    half = waves(shape, 0.5)[1]
    core, ahead = (slice(1, -1),) * len(shape), (slice(None, -1),) * len(shape)
    for c, axis in itertools.product(range(len(shape)), repeat=2):
        along = float(c == axis)
        slope, step = np.sin(rate[c]), 2 * np.sin(rate[c] / 2)
        np.testing.assert_allclose(
            central[(c, axis, *core)], along * slope * np.cos(angle[c])[core], atol=1e-12
        )
        np.testing.assert_allclose(
            forward[c, axis], along * step * np.cos(half[c])[ahead], atol=1e-12
        )


@SHAPES
@pytest.mark.parametrize("scheme", ["central", "forward"])
def test_the_jacobian_determinant_of_an_affine_field_is_that_of_its_matrix(shape, scheme):
    matrix = turn(len(shape)) * 3
    determinant = ops.jacobian_determinant(affine(matrix, shape), scheme)
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
    u = field(shape, 0.8, sigma=1.5)
    spacing = np.array([0.7, 1.9, 3.1])[: len(shape)]
    backwards = np.moveaxis(u[0].numpy(), 0, -1)[..., ::-1] * spacing[::-1]  # ITK: x is last
    image = SimpleITK.GetImageFromArray(backwards, isVector=True)
    image.SetSpacing(spacing[::-1].tolist())
    expected = SimpleITK.GetArrayFromImage(SimpleITK.DisplacementFieldJacobianDeterminant(image))
    core = (slice(1, -1),) * len(shape)
    assert expected[core].std() > 0.1
    np.testing.assert_allclose(ops.jacobian_determinant(u)[0][core], expected[core], rtol=1e-4)


@SHAPES
def test_only_forward_differences_see_a_fold_one_voxel_wide(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[:, 1, :, 4] = 1.2
    assert ops.jacobian_determinant(u, "central").min() == pytest.approx(0.4)
    folded = ops.jacobian_determinant(u, "forward")
    assert folded[:, :, 4].numpy() == pytest.approx(-0.2)
    assert (folded < 0).sum() == folded[:, :, 4].numel()


def linear(image, shape):
    mode = {4: "bilinear", 5: "trilinear"}[image.ndim]
    return F.interpolate(image, shape, mode=mode, align_corners=False)


@SHAPES
@pytest.mark.parametrize("factor", [1, 1.4, 2, 3])
def test_resizing_up_is_linear_interpolation(shape, factor):
    image, new = textured(shape, channels=2), [int(n * factor) for n in shape]
    torch.testing.assert_close(ops.resize(image, new), linear(image, new))


@pytest.mark.parametrize("shape", [(8, 15), (8, 9, 5)])
def test_resizing_down_by_whole_numbers_averages_the_cells(shape):
    image, ratio = textured(shape, channels=2), [4, 3, 5][: len(shape)]
    new = [n // r for n, r in zip(shape, ratio, strict=True)]
    cells = image.numpy().reshape(2, *[k for pair in zip(new, ratio, strict=True) for k in pair])
    expected = cells.mean(axis=tuple(range(2, cells.ndim, 2)))
    np.testing.assert_allclose(ops.resize(image, new)[0], expected)


@SHAPES
def test_resizing_down_keeps_the_mean_of_any_image(shape):
    image, new = textured(shape, channels=2), [4, 7, 5][: len(shape)]
    small = ops.resize(image, new)
    torch.testing.assert_close(small.flatten(2).mean(2), image.flatten(2).mean(2))
    assert small.abs().max() < image.abs().max()


def cells_of(old, new):
    """Voxel coordinates, on the old grid, of the centres of the new one's cells."""
    ratio = np.array(old) / np.array(new)
    column = (-1, *[1] * len(old))
    return (np.indices(new) + 0.5) * ratio.reshape(column) - 0.5


@pytest.mark.parametrize("factors", [(0.5, 0.25, 0.5), (2, 1.5, 3), (0.5, 1.75, 0.25)])
@pytest.mark.parametrize("shape", [(16, 12), (8, 12, 16)])
def test_a_ramp_stays_the_same_ramp_in_space(shape, factors):
    new = [int(n * f) for n, f in zip(shape, factors, strict=False)]
    ramps = affine(np.eye(len(shape)), shape, centre=np.zeros(len(shape)))
    at = (..., *[slice(2, -2) if n > old else slice(None) for n, old in zip(new, shape, strict=1)])
    expected = torch.from_numpy(cells_of(shape, new))[None]
    torch.testing.assert_close(ops.resize(ramps, new)[at], expected[at])


@SHAPES
def test_a_ramp_averaged_over_broken_cells_is_off_by_an_eighth_of_the_new_voxel_at_most(shape):
    new = [-(-n // 2) for n in shape]
    ramps = affine(np.eye(len(shape)), shape, centre=np.zeros(len(shape)))
    error = (ops.resize(ramps, new) - torch.from_numpy(cells_of(shape, new))[None]).abs()
    for axis, (old, n) in enumerate(zip(shape, new, strict=True)):
        assert error[:, axis].max() <= n / old / 8 + 1e-9


@pytest.mark.parametrize("factors", [(0.5, 0.25, 0.5), (2, 1.5, 3), (0.5, 1.75, 0.25)])
@pytest.mark.parametrize("shape", [(16, 12), (8, 12, 16)])
def test_an_affine_field_is_the_same_map_on_the_new_grid(shape, factors):
    new = [int(n * f) for n, f in zip(shape, factors, strict=False)]
    matrix = turn(len(shape))
    u = affine(matrix, shape, centre=np.full(len(shape), 1.7))
    column = (-1, *[1] * len(shape))
    x = cells_of(shape, new) - 1.7
    moved = np.moveaxis(np.moveaxis(x, 0, -1) @ matrix.T, -1, 0)  # in old voxels
    expected = torch.from_numpy(moved * (np.array(new) / np.array(shape)).reshape(column))[None]
    at = (..., *[slice(2, -2) if n > old else slice(None) for n, old in zip(new, shape, strict=1)])
    torch.testing.assert_close(ops.resize_field(u, new)[at], expected[at])


@SHAPES
def test_resizing_to_the_same_grid_changes_nothing(shape):
    u = textured(shape, channels=len(shape))
    assert torch.equal(ops.resize(u, shape), u)
    assert torch.equal(ops.resize_field(u, shape), u)


@SHAPES
@pytest.mark.parametrize("new", [(18, 22, 21), (3, 5, 4), (5, 17, 3)])
def test_labels_take_the_cell_their_centre_falls_in(shape, new):
    labels = torch.randint(0, 9, (2, 1, *shape), generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(labels.double(), new[: len(shape)], mode="nearest-exact").long()
    assert torch.equal(ops.resize_nearest(labels, new[: len(shape)]), expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_transforming_points_applies_the_homogeneous_matrix(ndim):
    rng = np.random.default_rng(0)
    matrix, points = rng.normal(size=(2, ndim + 1, ndim + 1)), rng.normal(size=(2, 5, ndim))
    matrix[:, -1] = np.eye(ndim + 1)[-1]
    lifted = np.concatenate([points, np.ones((2, 5, 1))], -1)
    expected = np.stack([(m @ p.T).T[:, :-1] for m, p in zip(matrix, lifted, strict=True)])
    both = ops.transform_points(torch.from_numpy(matrix), torch.from_numpy(points))
    np.testing.assert_allclose(both, expected)
    one = ops.transform_points(torch.from_numpy(matrix[0]), torch.from_numpy(points[0]))
    np.testing.assert_allclose(one, expected[0])


@SHAPES
def test_an_affine_map_as_a_field(shape):
    ndim = len(shape)
    shift = np.arange(1.0, ndim + 1)
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] += turn(ndim)
    matrix[:ndim, -1] = shift
    both = ops.affine_field(torch.from_numpy(np.stack([np.eye(ndim + 1), matrix])), shape)
    assert both[0].abs().max() == 0
    around = -np.linalg.solve(turn(ndim), shift)  # A (x - centre) = A x + t
    torch.testing.assert_close(both[1:], affine(turn(ndim), shape, around))


SMALL = pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3)])


def between_voxels(shape, seed):
    """A displacement that ends well away from the kinks of linear interpolation."""
    rng = np.random.default_rng(seed)
    whole, part = rng.integers(-1, 2, (1, len(shape), *shape)), rng.uniform(0.2, 0.4, shape)
    return torch.from_numpy(whole + part).requires_grad_()


@SMALL
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_the_warp_can_be_differentiated_twice(shape, padding):
    image = textured(shape, channels=2).requires_grad_()

    def warped(m, u):
        return ops.warp(m, u, padding=padding)

    inputs = (image, between_voxels(shape, 1))
    assert gradcheck(warped, inputs)
    assert gradgradcheck(warped, inputs)


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
    u = between_voxels(shape, 2)
    assert gradcheck(function, (u,))
    assert gradgradcheck(function, (u,))


@pytest.mark.parametrize("shape", [(192, 3), (192, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mixed_precision_leaves_coordinates_alone(shape, dtype):
    ramp = torch.arange(192.0).view(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape)
    u = torch.zeros(1, len(shape), *shape, dtype=dtype)
    u[:, 0] = 0.375  # exact in every dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped, twice = ops.warp(ramp, u), ops.warp(ramp, ops.compose(u, u))
    assert warped.dtype == twice.dtype == torch.float32
    assert (warped - ramp - 0.375)[:, :, :-1].abs().max() < 1e-3
    assert (twice - ramp - 0.75)[:, :, :-1].abs().max() < 1e-3


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "function",
    [
        lambda u: ops.sample(u, ops.identity_grid(u.shape[2:], u.float()) + 0.3),
        lambda u: ops.warp(u, u),
        lambda u: ops.compose(u, u),
        ops.integrate,
        ops.invert,
        ops.jacobian_determinant,
        lambda u: ops.resize(u, [2 * n for n in u.shape[2:]]),
        lambda u: ops.resize_field(u, [n - 2 for n in u.shape[2:]]),
        lambda u: ops.transform_points(u[:, 0, ..., :3, :3], u[:, 0, ..., :2]),
    ],
    ids=["sample", "warp", "compose", "integrate", "invert", "jacobian", "up", "down", "points"],
)
def test_everything_is_computed_in_single_precision(shape, dtype, function):
    u = field(shape, 0.5).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = function(u)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, function(u.float()))


@pytest.mark.parametrize("padding", ["border", "zeros"])
@SHAPES
def test_sampling_in_a_fixed_order_is_sampling(shape, padding):
    """Also outside the image and in the gradients, which CUDA's grid_sample adds up at random."""
    ndim = len(shape)
    image = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    reach = torch.tensor(shape).view(1, -1, *[1] * ndim) + 4
    spread = torch.rand(2, ndim, *[n + 2 for n in shape], dtype=torch.float64)
    points = (spread * reach - 2.5).requires_grad_()
    cotangent = torch.randn(2, 3, *spread.shape[2:], dtype=torch.float64)
    found = []
    for way in (ops.sample, ops._sampled):
        value = way(image, points, padding)
        found.append([value, *torch.autograd.grad((value * cotangent).sum(), [image, points])])
    for usual, fixed in zip(*found, strict=True):
        torch.testing.assert_close(fixed, usual, atol=1e-10, rtol=1e-10)


@SHAPES
def test_sampling_in_a_fixed_order_can_be_differentiated_twice(shape):
    small = [3] * len(shape)
    image = torch.randn(1, 1, *small, dtype=torch.float64, requires_grad=True)
    spread = torch.rand(1, len(shape), *[2] * len(shape), dtype=torch.float64)
    points = (0.1 + 0.8 * spread + (spread > 0.5)).requires_grad_()  # on no edge between voxels
    assert gradgradcheck(lambda a, b: ops._sampled(a, b, "border"), (image, points))


@SHAPES
def test_a_zero_field_in_a_fixed_order_is_the_identity(shape):
    image = torch.randn(1, 2, *shape)
    found = ops._sampled(image, ops.identity_grid(shape, image), "border")
    assert torch.equal(found, image)


@SHAPES
def test_warping_in_a_fixed_order_is_warping(shape, monkeypatch):
    image, u = textured(shape, channels=2), field(shape, 2.0)
    usual = ops.warp(image, u)
    monkeypatch.setattr(ops, "_in_fixed_order", lambda points: True)
    monkeypatch.setattr(ops.F, "grid_sample", None)
    torch.testing.assert_close(ops.warp(image, u), usual, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("depth", [8, 9, 7])
def test_one_volume_is_cut_into_slabs_for_several_threads(depth):
    image, u = textured((7, 8, 9), channels=2).float(), field((depth, 8, 9), 1.0).float()
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


@SHAPES
def test_determinants_agree_with_numpy(shape):
    ndim = len(shape)
    matrix = torch.randn(2, ndim, ndim, *shape, dtype=torch.float64)
    expected = np.linalg.det(np.moveaxis(matrix.numpy(), (1, 2), (-2, -1)))
    torch.testing.assert_close(ops.determinant(matrix), torch.from_numpy(expected))
