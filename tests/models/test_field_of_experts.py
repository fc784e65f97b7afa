"""Fields of experts and their activations."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call

from regnet_lab.models.field_of_experts import FieldOfExperts, PiecewiseLinear, RadialBasis

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


ACTIVATIONS = pytest.mark.parametrize("activation", [PiecewiseLinear, RadialBasis])


@SMALL
def test_piecewise_linear_is_numpy_s_interpolation(shape):
    phi = PiecewiseLinear(3, num_knots=7, knot_range=(-0.5, 1.0), init_std=1.0)
    x = 2 * torch.randn(2, 3, *shape)
    for f in range(3):
        expected = np.interp(
            x[:, f].numpy(), phi.compute_knot_positions().numpy(), phi.values[f].detach()
        )
        np.testing.assert_allclose(phi(x)[:, f].detach(), expected, atol=1e-5)


@SMALL
def test_radial_basis_is_a_sum_of_gaussians(shape):
    phi = RadialBasis(3, num_knots=5, knot_range=(-1, 2), init_std=1.0)
    x = torch.randn(2, 3, *shape)
    for f in range(3):
        bells = np.exp(-((x[:, f, ..., None] - np.linspace(-1, 2, 5)) ** 2) / (2 * 0.75**2))
        expected = bells.numpy() @ phi.values[f].detach().numpy()
        np.testing.assert_allclose(phi(x)[:, f].detach(), expected, atol=1e-5)


@ACTIVATIONS
def test_activations_and_their_gradients(activation):
    phi = activation(2, num_knots=4, init_std=1.0).double()
    x = (torch.rand(2, 2, 3, 4, dtype=torch.double) * 3 - 1.5).requires_grad_()

    def values(x, w):
        return functional_call(phi, {"values": w}, x)

    assert torch.autograd.gradcheck(values, (x, phi.values))


@ACTIVATIONS
def test_activations_can_be_initialised_as_a_line(activation):
    phi = activation(2, num_knots=24, init_std=0.0, init_slope=0.3)
    torch.testing.assert_close(phi.values, 0.3 * torch.linspace(-1, 1, 24).expand(2, 24))


@SMALL
@pytest.mark.parametrize("channels", [1, 2])
def test_a_field_of_experts_is_the_gradient_of_its_energy(shape, channels):
    """rho, the integral of a sum of Gaussians, is a sum of error functions."""
    term = FieldOfExperts(len(shape), channels, 3, 5, partial(RadialBasis, init_std=1.0)).double()
    z = torch.randn(2, channels, *shape, dtype=torch.double, requires_grad=True)
    knots, step = term.activation.compute_knot_positions().double(), term.activation.step
    convolve = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[len(shape)]
    energy = 0
    for c in range(channels):
        kernels, values = (p[3 * c : 3 * c + 3] for p in (term.kernels, term.activation.values))
        responses = convolve(z[:, c : c + 1], kernels, padding=2)
        integral = (
            step
            * math.sqrt(math.pi / 2)
            * torch.erf((responses[..., None] - knots) / step / 2**0.5)
        )
        energy = energy + torch.einsum("bf...k,fk->", integral, values)
    (expected,) = torch.autograd.grad(energy, z)
    torch.testing.assert_close(term(z), expected)
