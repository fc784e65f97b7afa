"""The loss of unrolled models."""

import math

import numpy as np
import pytest

from regnet_lab import losses, ops
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import resize_pair
from tests.helpers.pairs import make_unrolled_case

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def distance(u, v):
    return (u - v).square().sum(1).sqrt().mean().item()


@SMALL
def test_the_last_unit_of_every_level_counts(shape):
    pair, out = make_unrolled_case(shape)
    coarse_truth = resize_pair(pair, out.fields[0].shape[2:])["displacement"]
    fine, coarse = (
        distance(out.fields[-1], pair["displacement"]),
        distance(out.fields[2], coarse_truth),
    )
    term = losses.EndpointError()
    assert losses.UnrolledLoss(term)(pair, out).item() == pytest.approx(
        (fine + 2 * coarse) / 2, rel=1e-5
    )
    assert losses.UnrolledLoss(term, finest_levels=1)(pair, out).item() == pytest.approx(
        fine, rel=1e-5
    )
    flat = losses.UnrolledLoss(term, coarse_level_factor=1.0)(pair, out).item()
    assert flat == pytest.approx((fine + coarse) / 2, rel=1e-5)


@SMALL
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_earlier_units_have_smaller_weights(shape, temperature):
    pair, out = make_unrolled_case(shape)
    shares = np.exp(-temperature * np.array([2, 1, 0]))
    errors = [distance(u, pair["displacement"]) for u in out.fields[3:]]
    loss = losses.UnrolledLoss(losses.EndpointError(), finest_levels=1, temperature=temperature)
    expected = (shares / shares.sum()) @ errors
    assert loss(pair, out).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_increases_in_training_only_and_is_saved():
    pair, out = make_unrolled_case((9, 11))
    loss = losses.UnrolledLoss(
        losses.EndpointError(), temperature=0.5, temperature_step=0.2, max_temperature=1.0
    )

    def temperature(loss):
        first, second = loss.compute_unit_weights(2)
        return math.log(second / first)

    loss.train()
    for step in range(4):
        assert temperature(loss) == pytest.approx(min(0.5 + 0.2 * step, 1.0))
        loss(pair, out)
    loss.eval()(pair, out)
    restored = losses.UnrolledLoss(
        losses.EndpointError(), temperature=0.5, temperature_step=0.2, max_temperature=9.0
    )
    restored.load_state_dict(loss.state_dict())
    assert temperature(restored) == pytest.approx(0.5 + 0.2 * 4)


@SMALL
def test_an_unsupervised_term_gets_the_images_of_the_level(shape):
    pair, out = make_unrolled_case(shape)
    expected = 0.0
    for u in (out.fields[2], out.fields[5]):
        level = resize_pair(pair, u.shape[2:])
        expected += (level["fixed"] - ops.warp(level["moving"], u)).square().mean().item() / 2
    loss = losses.UnrolledLoss(losses.Similarity(similarity.mean_squares), coarse_level_factor=1.0)
    assert loss(pair, out).item() == pytest.approx(expected, rel=1e-4)
