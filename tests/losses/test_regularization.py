"""Regularisers against closed forms."""

import monai.losses
import numpy as np
import pytest
import torch

from regnet_lab import losses
from regnet_lab.losses.regularization import fit_affine
from tests.helpers.losses import (
    SHAPES,
    linear_field,
    make_pair,
    make_registration,
    random_matrix,
    smooth,
)


@SHAPES
@pytest.mark.parametrize("power", [1, 2])
def test_diffusion_of_a_linear_field_is_the_norm_of_its_matrix(shape, power):
    matrix = random_matrix(len(shape))
    value = losses.Diffusion(power)(
        make_pair(shape), make_registration(linear_field(matrix, shape))
    )
    assert value.item() == pytest.approx((np.abs(matrix) ** power).sum(), rel=1e-4)


@SHAPES
def test_diffusion_of_a_wave(shape):
    u, axis, n = torch.zeros(2, len(shape), *shape), len(shape) - 1, shape[-1]
    u[:, 0] = torch.sin(0.7 * torch.arange(n))  # channel 0 waves along the last axis
    slopes = 2 * np.sin(0.35) * np.cos(0.7 * (np.arange(n - 1) + 0.5))
    value = losses.Diffusion()(make_pair(shape), make_registration(u))
    assert value.item() == pytest.approx((slopes**2).mean(), rel=1e-5)
    value = losses.Diffusion()(make_pair(shape), make_registration(u.transpose(2, axis + 2)))
    assert value.item() == pytest.approx((slopes**2).mean(), rel=1e-5)


@SHAPES
def test_isotropic_total_variation_of_a_linear_field_is_the_root_of_its_squares(shape):
    matrix = random_matrix(len(shape))
    value = losses.TotalVariation()(
        make_pair(shape), make_registration(linear_field(matrix, shape))
    )
    assert value.item() == pytest.approx(np.linalg.norm(matrix), rel=1e-4)


@SHAPES
def test_total_variation_of_a_step_does_not_depend_on_its_width(shape):
    values = []
    for width in (1, 4):
        u = torch.zeros(1, len(shape), *shape)
        ramp = ((torch.arange(shape[-1]) - 2) / width).clamp(0, 1)
        u[:, 0], u[:, 1] = 3 * ramp, 4 * ramp
        values.append(losses.TotalVariation(1e-12)(make_pair(shape), make_registration(u)).item())
    assert values == pytest.approx([5 / (shape[-1] - 1)] * 2, rel=1e-4)


@SHAPES
def test_total_variation_of_a_constant_field_has_a_finite_gradient(shape):
    u = torch.zeros(1, len(shape), *shape, requires_grad=True)
    losses.TotalVariation()(make_pair(shape), make_registration(u)).backward()
    assert not u.grad.any()


def quadratic(shape, seed=0):
    """u_i = x^T H_i x / 2 with a random symmetric H_i, and all H_i."""
    hessian = np.random.default_rng(seed).normal(size=(len(shape),) * 3)
    hessian = (hessian + hessian.transpose(0, 2, 1)) / 2
    x = np.indices(shape, dtype=float)
    u = np.einsum("ijk,j...,k...->i...", hessian, x, x) / 2
    return torch.from_numpy(u)[None], hessian


@SHAPES
def test_bending_of_a_quadratic_field_is_the_norm_of_its_hessians(shape):
    u, hessian = quadratic(shape)
    value = losses.BendingEnergy()(make_pair(shape), make_registration(u))
    assert value.item() == pytest.approx((hessian**2).sum(), rel=1e-4)


@SHAPES
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # MONAI's indexing
def test_bending_energy_is_monai_s_times_the_number_of_channels(shape):
    u, _ = quadratic(shape, seed=1)
    peer = monai.losses.BendingEnergyLoss()(u) * len(shape)
    value = losses.BendingEnergy()(make_pair(shape), make_registration(u))
    assert value.item() == pytest.approx(peer.item(), rel=1e-4)


@SHAPES
def test_bending_of_a_wave_and_of_an_affine_field(shape):
    n = shape[-1]
    affine = linear_field(random_matrix(len(shape)), shape)
    assert losses.BendingEnergy()(make_pair(shape), make_registration(affine)) < 1e-8
    wave = torch.zeros_like(affine)
    wave[:, 0] = torch.sin(0.7 * torch.arange(n))
    curvature = 4 * np.sin(0.35) ** 2 * np.sin(0.7 * np.arange(1, n - 1))
    value = losses.BendingEnergy()(make_pair(shape), make_registration(affine + wave))
    assert value.item() == pytest.approx((curvature**2).mean(), rel=1e-4)


@SHAPES
def test_folding_is_the_depth_of_the_folds(shape):
    u = smooth(shape, len(shape), batch=2, sigma=1) * 1.5
    ndim = len(shape)
    ahead = (..., *[slice(None, -1)] * ndim)
    slopes = [np.diff(u.numpy(), axis=a + 2, append=0)[ahead] for a in range(ndim)]
    jacobian = np.moveaxis(np.stack(slopes, 2), (1, 2), (-2, -1)) + np.eye(ndim)
    depth = np.maximum(-np.linalg.det(jacobian), 0)
    assert 0.02 < (depth > 0).mean() < 0.8
    pair = make_pair(shape, 2)
    total, mean = (
        losses.FoldingPenalty(reduction)(pair, make_registration(u))
        for reduction in ("sum", "mean")
    )
    assert total.item() == pytest.approx(depth.sum(), rel=1e-4)
    assert mean.item() == pytest.approx(depth.mean(), rel=1e-4)


@SHAPES
def test_folding_penalty_of_a_single_fold_equals_the_closed_form(shape):
    u = torch.zeros(1, len(shape), *shape, requires_grad=True)
    with torch.no_grad():
        u[:, 1, :, 4] = 1.2  # det = 1 - 1.2 on the slice before the step back
    value = losses.FoldingPenalty("sum")(make_pair(shape), make_registration(u))
    count = np.prod(np.delete(np.array(shape) - 1, 1))
    assert value.item() == pytest.approx(0.2 * count, rel=1e-4)
    value.backward()
    assert (u.grad[:, 1, :, 4].sum(), u.grad[:, 1, :, 5].sum()) == (count, -count)
    assert losses.FoldingPenalty()(make_pair(shape), make_registration(0.5 * u)) == 0


@SHAPES
def test_the_affine_fit_is_least_squares(shape):
    u, ndim = smooth(shape, len(shape), 2, seed=7), len(shape)
    x = np.indices(shape).reshape(ndim, -1).T
    x = np.column_stack([x - (np.array(shape) - 1) / 2, np.ones(len(x))])
    expected = [np.linalg.lstsq(x, case.reshape(ndim, -1).T)[0].T for case in u.numpy()]
    np.testing.assert_allclose(fit_affine(u), expected, atol=1e-5)
    value = losses.AffinePenalty()(make_pair(shape, 2), make_registration(u))
    assert value.item() == pytest.approx(np.square(expected).mean(), rel=1e-4)


@SHAPES
def test_affine_penalty_is_exact_for_linear_fields_and_ignores_the_residual(shape):
    ndim = len(shape)
    matrix = random_matrix(ndim)
    u = linear_field(matrix, shape)
    t = matrix @ (np.array(shape) - 1) / 2  # at the centre
    expected = (np.square(matrix).sum() + np.square(t).sum()) / (ndim * (ndim + 1))
    value = losses.AffinePenalty()(make_pair(shape), make_registration(u))
    assert value.item() == pytest.approx(expected, rel=1e-4)
    waves = smooth(shape, ndim, seed=7)
    fit = linear_field(fit_affine(waves)[0, :, :ndim].numpy(), shape)
    fit = fit - fit.mean(list(range(2, fit.ndim)), keepdim=True)
    residual = waves - waves.mean(list(range(2, fit.ndim)), keepdim=True) - fit
    assert residual.abs().max() > 0.5
    value = losses.AffinePenalty()(make_pair(shape), make_registration(u + residual))
    assert value.item() == pytest.approx(expected, rel=1e-3)


def test_the_affine_penalty_of_a_single_voxel_is_its_length():
    value = losses.AffinePenalty()(
        make_pair((9, 11)), make_registration(torch.full((1, 2, 1, 1), 3.0))
    )
    assert value.item() == pytest.approx(2 * 9 / 6)
