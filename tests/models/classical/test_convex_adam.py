"""ConvexAdam: discrete search and Adam against their definitions."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from regnet_lab import ops
from regnet_lab.models import ConvexAdam
from regnet_lab.models.classical.convex_adam import (
    compute_dissimilarity,
    make_inverse_consistent,
    smooth_twice,
    solve_coupled_convex,
)
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.types import Pair
from tests.helpers.images import smooth

SMALL = pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])


def list_offsets(ndim, radius):
    return np.array(list(product(range(-radius, radius + 1), repeat=ndim)))


@SMALL
def test_dissimilarity_is_the_mean_square_between_shifted_maps(shape):
    fixed, moving = np.random.default_rng(0).random((2, 2, 3, *shape))
    dissimilarity = compute_dissimilarity(
        torch.from_numpy(fixed), torch.from_numpy(moving), 2
    ).numpy()
    assert dissimilarity.shape == (2, 5 ** len(shape), *shape)
    inside = 0
    for b, (f, m) in enumerate(zip(fixed, moving, strict=True)):
        typical = ((f - m) ** 2).mean()
        for k, offset in enumerate(list_offsets(len(shape), 2)):
            for x in np.ndindex(shape):
                shifted = tuple(np.add(x, offset))
                expected = 0.0
                if all(0 <= i < n for i, n in zip(shifted, shape, strict=True)):
                    expected = ((f[:, *x] - m[:, *shifted]) ** 2).mean() - typical
                    inside += 1
                assert dissimilarity[b, k, *x] == pytest.approx(expected, abs=1e-9)
    assert 0 < inside < dissimilarity.size


@SMALL
def test_coupled_convex_search_equals_its_definition(shape):
    ndim, radius, couplings = len(shape), 1, (0.1, 0.5)
    steps = list_offsets(ndim, radius)
    cost = np.random.default_rng(0).random((1, len(steps), *shape))
    u = np.zeros((ndim, *shape))
    for theta in (0.0, *couplings):
        apart = ((steps[(..., *[None] * ndim)] - u) ** 2).sum(1)
        v = steps[(cost[0] + theta * apart).argmin(0)]
        u = np.moveaxis(v, -1, 0).astype(float)
        for _ in range(2):
            u = np.stack([uniform_filter(c, 3, mode="nearest") for c in u])
    solution = solve_coupled_convex(torch.from_numpy(cost), radius, couplings, 3)
    np.testing.assert_allclose(solution[0].numpy(), u, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_inverse_consistency_step_keeps_inverse_fields(ndim):
    shape = (18, 16, 17)[:ndim]
    bend = 3 * (smooth(shape, 0, channels=ndim, sigma=4.0) - 0.5)
    inverse = ops.invert(bend, tolerance=1e-6)
    core = (..., *[slice(4, -4)] * ndim)
    assert bend[core].abs().mean() > 0.2
    assert (make_inverse_consistent(bend, inverse) - bend)[
        core
    ].abs().mean() < 0.03  # of interpolation
    halfway = make_inverse_consistent(torch.ones_like(bend), torch.zeros_like(bend), 60)
    torch.testing.assert_close(halfway, torch.full_like(bend, 0.5), atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(40, 36), (24, 26, 22)])
def test_a_large_motion_is_recovered_and_adam_refines_it(shape):
    ndim = len(shape)
    fixed = smooth(shape, 1, sigma=1.5)
    shift = torch.tensor([4.0, -3.0, 5.0][:ndim]).view(1, -1, *[1] * ndim)
    bend = 3 * (smooth(shape, 3, channels=ndim, sigma=5.0) - 0.5)
    truth = ops.invert(shift + bend)  # fixed(x) = moving(x + truth(x)) with moving made by it
    moving = ops.warp(fixed, shift + bend)
    pair = Pair(fixed=fixed, moving=moving, spacing=torch.ones(1, ndim), name=["a"])
    core = (..., *[slice(8, -8)] * ndim)
    missed = []
    for steps in (0, 60):
        with torch.no_grad():
            u = apply_displacement(
                pair, ConvexAdam(search_radius=3, adam_steps=steps)(fixed, moving)
            ).displacement
        missed.append((u - truth)[core].norm(dim=1).mean().item())
    before = truth[core].norm(dim=1).mean().item()
    assert before > 4
    assert missed[1] < missed[0] < 0.4 * before
    assert missed[1] < 0.15 * before


@pytest.mark.parametrize("ndim", [2, 3])
def test_smoothing_keeps_constants_and_is_a_mean_applied_twice(ndim):
    u = torch.randn(1, ndim, *(7, 8, 6)[:ndim]).double()
    expected = u[0].numpy()
    for _ in range(2):
        expected = np.stack([uniform_filter(c, 3, mode="nearest") for c in expected])
    np.testing.assert_allclose(smooth_twice(u, 3)[0].numpy(), expected, atol=1e-12)
    torch.testing.assert_close(smooth_twice(torch.ones_like(u), 3), torch.ones_like(u))


def test_inverted_intensities_are_registered():
    shape = (32, 30)
    fixed = smooth(shape, 1, sigma=1.5)
    moving = 1 - 0.5 * torch.roll(fixed, (3, -2), (2, 3))  # another contrast
    with torch.no_grad():
        u = ops.resize_field(ConvexAdam(search_radius=3)(fixed, moving)[-1], shape)
    core = u[0, :, 8:-8, 8:-8].mean((1, 2))
    torch.testing.assert_close(core, torch.tensor([3.0, -2.0]), atol=0.4, rtol=0)
