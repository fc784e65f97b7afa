"""Iterative refinement: composition of passes and the stopping rule."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models import IterativeRefinement
from regnet_lab.models.wrappers.composition import compute_residual_std

SHAPES = pytest.mark.parametrize("shape", [(18, 22), (14, 16, 12)])


def smooth(shape, seed, channels=1, sigma=2.0):
    noise = np.random.default_rng(seed).normal(size=(1, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(noise / noise.std()).float()


class Constant(torch.nn.Module):
    """A model with constant output that records its inputs."""

    def __init__(self, *fields):
        super().__init__()
        self.fields, self.moving_images = fields, []

    def forward(self, fixed, moving):
        self.moving_images.append(moving)
        return [u.expand(len(fixed), *u.shape[1:]) for u in self.fields]


def shift(shape, voxels):
    u = torch.zeros(1, len(shape), *shape)
    u[:, -1] = voxels
    return u


@SHAPES
def test_passes_are_composed_not_added(shape):
    """k maps x -> x + s x + t compose to (1 + s)^k x + t ((1 + s)^k - 1) / s in the interior."""
    s, t = 0.1, 0.3
    x = ops.identity_grid(shape, torch.zeros(()))
    model = IterativeRefinement(
        Constant(s * (x - 6) + t), max_passes=3, stopping_measure=lambda f, w: torch.zeros(len(f))
    )
    (total,) = model(*torch.rand(2, 1, 1, *shape))
    k = (1 + s) ** 3
    expected = (k - 1) * (x - 6) + t * (k - 1) / s
    inner = (..., *[slice(4, 9)] * len(shape))
    torch.testing.assert_close(total[inner], expected[inner], atol=1e-4, rtol=1e-4)
    added = 3 * (s * (x - 6) + t)
    assert (total - added)[inner].abs().max() > 0.05


@SHAPES
def test_the_moving_image_is_warped_by_the_total_each_time(shape):
    u, moving = smooth(shape, 1, len(shape), 4.0), smooth(shape, 2)
    model = Constant(u)
    total = IterativeRefinement(model, 3, stopping_measure=lambda f, w: torch.zeros(len(f)))(
        moving, moving
    )[-1]
    grid, m, once = np.indices(shape), moving[0, 0].double().numpy(), u[0].double().numpy()
    first = map_coordinates(m, grid + once, order=1, mode="nearest")
    np.testing.assert_allclose(model.moving_images[1][0, 0], first, atol=1e-4)
    at = grid + once
    twice = once + np.stack([map_coordinates(c, at, order=1, mode="nearest") for c in once])
    second = map_coordinates(m, grid + twice, order=1, mode="nearest")
    np.testing.assert_allclose(model.moving_images[2][0, 0], second, atol=1e-3)
    assert total.shape == u.shape


@SHAPES
@pytest.mark.parametrize(("distance", "passes"), [(0.4, 1), (1.2, 1), (2.2, 2), (3.9, 4), (9.0, 5)])
def test_it_stops_before_the_residual_std_increases(shape, distance, passes):
    """Steps of one voxel towards a shift of ``distance``, at most five."""
    moving = smooth(shape, 3, sigma=4.0)
    fixed = ops.warp(moving, shift(shape, distance))
    (total,) = IterativeRefinement(Constant(shift(shape, 1.0)), max_passes=5)(fixed, moving)
    inner = (..., slice(2, 10))
    torch.testing.assert_close(total[inner], shift(shape, float(passes))[inner])


@SHAPES
def test_cases_stop_independently_or_together(shape):
    moving = smooth(shape, 3, sigma=4.0).repeat(2, *[1] * (len(shape) + 1))
    far = torch.cat([shift(shape, 1.4), shift(shape, 4.0)])
    fixed = ops.warp(moving, far)
    step = Constant(shift(shape, 1.0))
    apart = IterativeRefinement(step, max_passes=8)(fixed, moving)[-1]
    assert apart[:, -1].flatten(1)[:, 0].tolist() == [1.0, 4.0]
    together = IterativeRefinement(step, max_passes=8, stop_batch_together=True)(fixed, moving)[-1]
    assert torch.equal(together[0], together[1])
    assert 1 < together[0, -1].max() < 4


@SHAPES
def test_the_first_pass_always_counts_and_one_pass_equals_the_model(shape):
    fixed, moving = smooth(shape, 4), smooth(shape, 5)
    u = 5 * smooth(shape, 6, len(shape))
    for times in (1, 4):
        torch.testing.assert_close(IterativeRefinement(Constant(u), times)(fixed, moving)[-1], u)


@SHAPES
def test_coarse_fields_are_composed_on_their_own_grids(shape):
    half_shape = [n // 2 for n in shape]
    coarse, fine = smooth(half_shape, 1, len(shape), 3.0) / 2, smooth(shape, 2, len(shape), 4.0)
    model = IterativeRefinement(
        Constant(coarse, fine), 2, stopping_measure=lambda f, w: torch.zeros(len(f))
    )
    first, last = model(*torch.rand(2, 1, 1, *shape))
    torch.testing.assert_close(first, ops.compose(coarse, ops.resize_field(fine, half_shape)))
    torch.testing.assert_close(last, ops.compose(fine, fine))


@SHAPES
@pytest.mark.parametrize("passes", [2, 3])
def test_gradients_reach_the_model_through_every_pass(shape, passes):
    fixed, moving = smooth(shape, 1), smooth(shape, 2)
    u = torch.nn.Parameter(shift(shape, 0.1))
    model = IterativeRefinement(
        Constant(u), passes, stopping_measure=lambda f, w: torch.zeros(len(f))
    )
    model(fixed, moving)[-1].sum().backward()
    assert u.grad[:, -1].sum() == pytest.approx(passes * np.prod(shape), rel=1e-3)


def test_residual_std_is_the_standard_deviation_of_the_residual():
    a, b = torch.rand(2, 3, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = [np.std(residual.numpy(), ddof=1) for residual in a - b]
    np.testing.assert_allclose(compute_residual_std(a, b), expected, rtol=1e-5)


def test_zero_passes_are_refused():
    with pytest.raises(UserError, match="max_passes=0"):
        IterativeRefinement(Constant(), max_passes=0)
