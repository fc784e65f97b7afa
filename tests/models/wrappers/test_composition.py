"""Chains of models and residual refinement."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regnet_lab import ops
from regnet_lab.models import FAIM, Chain, ResidualRefinement
from tests.helpers.fields import make_waves

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def images(shape, batch=1):
    return torch.rand(2, batch, 1, *shape, generator=torch.Generator().manual_seed(1))


def count(model):
    return sum(p.numel() for p in model.parameters())


class Always(nn.Module):
    """A model with fixed output that records its inputs."""

    def __init__(self, *fields):
        super().__init__()
        self.fields = fields

    def forward(self, fixed, moving):
        self.moving = moving
        return list(self.fields)


@pytest.mark.parametrize("shape", [(16, 18), (12, 14, 16)])
def test_chain_warps_like_its_models_in_sequence(shape):
    ramp = ops.identity_grid(shape, torch.zeros(())).sum(1, keepdim=True)
    first, second = make_waves(shape, 0.7, 0.0), make_waves(shape, 1.5, 1.0)
    half_shape = [n // 2 for n in shape]
    after = Always(ops.resize_field(second, half_shape), second)
    coarse, u = Chain({"one": Always(first), "two": after})(ramp, ramp)
    assert torch.equal(after.moving, ops.warp(ramp, first))
    inner = (..., *[slice(3, -3)] * len(shape))
    one_by_one = ops.warp(ops.warp(ramp, first), second)  # exact: a warped ramp is linear in u
    torch.testing.assert_close(ops.warp(ramp, u)[inner], one_by_one[inner], atol=1e-4, rtol=0)
    wrong = ops.warp(ops.warp(ramp, second), first)
    assert (one_by_one - wrong)[inner].abs().max() > 0.1
    expected = ops.compose(
        ops.resize_field(second, half_shape), ops.resize_field(first, half_shape)
    )
    assert torch.equal(coarse, expected)


@pytest.mark.parametrize(("ndim", "parameters"), [(2, 16 * 18 + 16 + 2 * 144 + 2), (3, 2_611)])
def test_residual_refinement_has_the_published_size(ndim, parameters):
    assert count(ResidualRefinement(nn.Identity(), ndim)) == parameters


@SMALL
def test_residual_refinement_is_added_to_the_last_field(shape):
    u, coarse = make_waves(shape, 1.0, 0.0), make_waves([4] * len(shape), 1.0, 0.0)
    model = ResidualRefinement(Always(coarse, u), len(shape), channels=5)
    fields = model(*images(shape))
    first, second = (layer for layer in model.refinement.modules() if hasattr(layer, "kernel_size"))
    conv = F.conv2d if len(shape) == 2 else F.conv3d
    hidden = conv(u, first.weight, first.bias, padding=1)
    change = conv(
        torch.where(hidden > 0, hidden, 0.2 * hidden), second.weight, second.bias, padding=1
    )
    expected = u + torch.where(change > 0, change, 0.2 * change)
    assert [f is g for f, g in zip(fields, (coarse, u), strict=False)] == [True, True]
    torch.testing.assert_close(fields[2], expected)


@SMALL
@pytest.mark.parametrize("detached", [False, True])
def test_detached_refinement_gives_the_model_no_gradient(shape, detached):
    model = ResidualRefinement(
        FAIM(len(shape), (3, 2), 2, 4, flow_init_std=0.1), len(shape), 4, detached
    )
    u, refined = model(*images(shape))
    refined.square().sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in model.refinement.parameters())
    assert all((p.grad is None) == detached for p in model.model.parameters())
    model.zero_grad()
    u.square().sum().backward()
    assert all(p.grad is None for p in model.refinement.parameters())
    assert all(p.grad is not None for p in model.model.parameters())
