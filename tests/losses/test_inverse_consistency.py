"""Inverse consistency of two fields."""

import pytest
import torch

from regnet_lab import losses, ops
from tests.helpers.fields import make_waves


@pytest.mark.parametrize("shape", [(20, 18), (20, 17, 18)])
def test_inverse_consistency_of_a_field_and_its_inverse_is_near_zero(shape):
    edge = torch.ones(shape)
    for axis, n in enumerate(shape):
        edge = edge * (torch.pi * torch.arange(n) / (n - 1)).sin().view(
            -1, *[1] * (len(shape) - axis - 1)
        )
    u = make_waves(shape, 2.0, 0.0) * edge
    apart = losses.inverse_consistency(u, -u)  # whose sum is nothing
    assert apart > 0.1
    assert losses.inverse_consistency(u, ops.invert(u, tolerance=1e-6)) < 0.05 * apart
    shift, ndim = torch.zeros(1, len(shape), *shape), len(shape)
    shift[:, 1] = 1.5
    value = losses.inverse_consistency(shift, torch.full_like(shift, 0.5))
    assert value.item() == pytest.approx(4 + 0.25 * (ndim - 1))


def test_inverse_consistency_passes_gradcheck():
    u, v = (make_waves((5, 6), s, s).double().requires_grad_() for s in (0.4, 0.7))
    assert torch.autograd.gradcheck(losses.inverse_consistency, (u, v))
