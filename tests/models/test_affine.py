"""The affine network."""

import pytest
import torch
from torch import nn

from regnet_lab import ops
from regnet_lab.models import Affine

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def images(shape, batch=1):
    return torch.rand(2, batch, 1, *shape, generator=torch.Generator().manual_seed(1))


@SMALL
def test_affine_network_returns_the_field_of_its_matrix(shape):
    ndim = len(shape)
    model = Affine(ndim, down=(4, 8), init_std=0.05)
    fixed, moving = images(shape, batch=2)
    (u,) = model(fixed, moving)
    matrix = model.predict_matrix(fixed, moving)
    x = ops.identity_grid(shape, u)
    linear = torch.einsum("bij,j...->bi...", matrix[:, :-1, :-1], x[0])
    shift = matrix[:, :-1, -1].view(2, ndim, *[1] * ndim)
    torch.testing.assert_close(x + u, linear + shift)
    assert matrix[:, -1].tolist() == [[0.0] * ndim + [1.0]] * 2
    assert u.abs().amax(dim=tuple(range(1, ndim + 2))).min() > 0.01
    assert not torch.equal(u[0], u[1])


@SMALL
def test_affine_network_acts_about_the_image_centre(shape):
    ndim = len(shape)
    model = Affine(ndim, down=(4,))
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.view(ndim, ndim + 1)[0, 1] = 0.1  # shears axis 0 along axis 1
        model.head.bias.view(ndim, ndim + 1)[1, -1] = 0.5  # half of half the longest side
    (u,) = model(*images(shape))
    along = (torch.arange(shape[1]) - (shape[1] - 1) / 2) * 0.1
    expected = torch.zeros(ndim, *shape)
    expected[0] = along.view(-1, *[1] * (ndim - 2))
    expected[1] = max(shape) / 4
    torch.testing.assert_close(u[0], expected, atol=1e-5, rtol=1e-5)
