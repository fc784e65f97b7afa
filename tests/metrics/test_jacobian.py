"""Jacobian metrics against closed forms."""

import math

import numpy as np
import pytest
import torch

from regnet_lab import metrics, ops
from tests.helpers.metrics import SHAPES, as_pair


@SHAPES
def test_identity_has_no_folds_and_a_reflection_only_folds(shape):
    ndim = len(shape)
    grid = ops.identity_grid(shape, torch.zeros((), dtype=torch.float64))
    pair = as_pair(np.ones(shape), np.ones(shape))
    still = metrics.score_full(pair, 0 * grid)
    for key in ("sdlogj", "sdlogj_plain", "folds_percent", "ndv_percent"):
        assert still[key] == 0
    for axis in range(ndim):
        mirror = torch.zeros_like(grid)
        mirror[:, axis] = -2 * grid[:, axis]
        score = metrics.score_full(pair, mirror)
        assert score["folds_percent"] == 100
        assert score["ndv_percent"] == pytest.approx(100)


@SHAPES
def test_sdlogj_equals_the_closed_form(shape):
    u = np.zeros((len(shape), *shape))
    x = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    u[0] = 0.02 * x**2  # central differences of a parabola are exact: det = 1 + 0.04 x
    determinant = metrics.interior_determinant(u)
    exact = 1 + 0.04 * np.arange(2, shape[0] - 2)
    assert metrics.sdlogj(determinant, offset=0) == pytest.approx(np.log(exact).std())
    assert metrics.sdlogj(determinant) == pytest.approx(np.log(exact + 3).std())
    u[0] = -0.5 * x**2 / shape[0]  # det = 1 - x / n > 0
    assert metrics.folds_percent(metrics.interior_determinant(u)) == 0
    u[0] = -0.5 * x**2 / 6.5  # det = 1 - x / 6.5 < 0 from voxel 7 on
    folds = metrics.folds_percent(metrics.interior_determinant(u))
    assert folds == pytest.approx(100 * (shape[0] - 9) / (shape[0] - 4))


def test_a_determinant_of_zero_is_a_fold():
    assert metrics.folds_percent(np.array([0.0, 1.0, -1.0, 2.0])) == 50


@SHAPES
def test_ndv_detects_a_one_voxel_fold_that_central_differences_miss(shape):
    ndim = len(shape)
    u = np.zeros((ndim, *shape))
    jump = 1.5
    u[0][(6,) * ndim] = jump  # one voxel passes its neighbour along axis 0
    assert metrics.folds_percent(metrics.interior_determinant(u)) == 0
    # Corner simplices with that voxel and its neighbour ahead have an edge of 1 - 1.5 = -0.5.
    # Each of the 2^(D-1) cells round that edge has one at either end, one for each way.
    cells_round_edge = 2 ** (ndim - 1)
    simplex = (jump - 1) / math.factorial(ndim)
    volume = metrics.ndv_percent(u) / 100 * np.prod(np.array(shape) - 1)
    assert volume == pytest.approx(cells_round_edge * simplex)


@pytest.mark.parametrize("shape", [(40, 9), (35, 7, 6)])
def test_upright_minus_inverted_volume_is_the_volume_of_the_grid(shape):
    # u vanishes on the border, so the signed volumes of all simplices sum up to the grid's.
    rng = np.random.default_rng(3)
    inner = (slice(1, -1),) * len(shape)
    u = np.zeros((len(shape), *shape))
    u[(slice(None), *inner)] = rng.normal(size=u[(slice(None), *inner)].shape)
    mirrored = u.copy()  # x + u(x) with the sign of its first coordinate turned
    mirrored[0] -= 2 * (np.indices(shape)[0] + u[0])
    folded, upright = metrics.ndv_percent(u), metrics.ndv_percent(mirrored)
    assert folded > 1
    assert upright - folded == pytest.approx(100)


@SHAPES
def test_ndv_counts_only_cells_inside_the_mask(shape):
    u = np.zeros((len(shape), *shape))
    x = np.arange(8, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    u[0, 8:] = -2 * x  # mirrored from layer 8 on
    mask = np.zeros(shape, bool)
    mask[8:] = True
    assert metrics.ndv_percent(u, mask) == pytest.approx(100)
    pair = as_pair(np.ones(shape), np.ones(shape), fixed_mask=mask)
    assert metrics.score_full(pair, torch.from_numpy(u)[None])["ndv_percent"] == pytest.approx(100)
    assert metrics.ndv_percent(u, ~mask) == 0


@pytest.mark.parametrize("shape", [(1, 4), (4, 9), (2, 4, 1), (5, 4, 9)])
def test_tiny_grids_have_no_interior_but_do_not_crash(shape):
    pair = as_pair(np.ones(shape), np.ones(shape), fixed_mask=np.ones(shape))
    score = metrics.score_full(pair, torch.zeros(1, len(shape), *shape))
    for key in ("sdlogj", "sdlogj_plain", "folds_percent"):
        assert np.isnan(score[key])
    assert np.isnan(score["ndv_percent"]) == (1 in shape)
