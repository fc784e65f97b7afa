"""Losses on every level of a model."""

import numpy as np
import pytest
import torch

from regnet_lab import losses, ops
from regnet_lab.errors import UserError
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from tests.helpers.losses import (
    SHAPES,
    constant_field,
    linear_field,
    make_complete_pair,
    make_pair,
    make_registration,
    random_matrix,
    smooth,
)


def double_shape(shape):
    return [2 * n for n in shape]


@SHAPES
def test_deep_supervision_uses_each_level_s_own_voxels(shape):
    full = double_shape(shape)
    step = [1.0, 2.0, 4.0][: len(shape)]
    true_u, length = constant_field(step, full), np.linalg.norm(step)
    fine, coarse = torch.zeros_like(true_u), torch.zeros(1, len(shape), *shape)
    pair = make_pair(full, displacement=true_u)
    for weights in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7]):
        value = losses.DeepSupervision(losses.EndpointError(), weights)(
            pair, make_registration(fine, coarse)
        )
        expected = weights[0] * length / 2 + weights[1] * length
        assert value.item() == pytest.approx(expected, rel=1e-5)


@SHAPES
def test_deep_supervision_of_the_true_map_is_zero_at_every_level(shape):
    full = double_shape(shape)
    true_u = linear_field(0.1 * random_matrix(len(shape)), full)
    pair = make_pair(full, displacement=true_u)
    term = losses.DeepSupervision(losses.EndpointError(), [1.0, 1.0])
    coarse = ops.resize_field(true_u, shape)
    assert term(pair, make_registration(true_u, coarse)) < 1e-4
    assert (
        term(pair, make_registration(true_u, ops.resize(true_u, shape))) > 0.1
    )  # forgot to halve the voxels
    error = [
        term(pair, make_registration(a, b)) for a, b in ((true_u, 0 * coarse), (0 * true_u, coarse))
    ]
    assert error[1].item() == pytest.approx(2 * error[0].item(), rel=0.01)


@SHAPES
def test_landmark_distance_is_the_same_at_every_level(shape):
    full = double_shape(shape)
    pair = make_complete_pair(full)
    u = constant_field([0.5, -1.0, 2.0][: len(shape)], full)
    fields = (u, ops.resize_field(u, shape))
    first, last = (
        losses.DeepSupervision(losses.LandmarkDistance(), weights)(pair, make_registration(*fields))
        for weights in ([1.0, 0.0], [0.0, 1.0])
    )
    torch.testing.assert_close(first, last)


@SHAPES
def test_deep_supervision_warps_each_level_s_own_image(shape):
    full, ndim = double_shape(shape), len(shape)
    pair = make_complete_pair(full)
    small = {side: ops.resize(pair[side], shape) for side in ("fixed", "moving")}
    coarse, fine = smooth(shape, ndim, seed=8), smooth(full, ndim, seed=9)
    levels = [(small["fixed"], small["moving"], coarse), (pair["fixed"], pair["moving"], fine)]
    errors = [(f - ops.warp(m, u)).square().mean() for f, m, u in levels]
    term = losses.DeepSupervision(losses.Similarity(similarity.mean_squares), [0.25, 2.0])
    value = term(pair, apply_displacement(pair, [coarse, fine]))
    torch.testing.assert_close(value, 0.25 * errors[0] + 2 * errors[1])


def test_deep_supervision_needs_a_weight_for_every_field():
    pair, u = make_complete_pair((9, 11)), torch.zeros(1, 2, 9, 11)
    for count in (1, 3):
        term = losses.DeepSupervision(losses.Diffusion(), [1.0] * count)
        with pytest.raises(UserError, match=rf"{count}.*2"):
            term(pair, apply_displacement(pair, [u, u]))
