"""Losses against labels, a true displacement and landmarks."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from regnet_lab import losses
from tests.helpers.losses import (
    SHAPES,
    SPACING,
    constant_field,
    linear_field,
    make_complete_pair,
    make_pair,
    make_registration,
    random_matrix,
    smooth,
)


@SHAPES
def test_endpoint_error_is_the_mean_distance(shape):
    u, true_u = smooth(shape, len(shape), 2, seed=8), smooth(shape, len(shape), 2, seed=9)
    value = losses.EndpointError()(make_pair(shape, 2, displacement=true_u), make_registration(u))
    expected = np.linalg.norm((u - true_u).numpy(), axis=1).mean()
    assert value.item() == pytest.approx(expected, rel=1e-5)


@SHAPES
def test_endpoint_error_of_the_true_field_has_a_finite_gradient(shape):
    true_u = smooth(shape, len(shape))
    u = true_u.clone().requires_grad_()
    value = losses.EndpointError()(make_pair(shape, displacement=true_u), make_registration(u))
    value.backward()
    assert value < 1e-5
    assert torch.isfinite(u.grad).all()


@SHAPES
@pytest.mark.parametrize("delta", [0.3, 1.0])
def test_huber_is_quadratic_for_small_and_linear_for_large_errors(shape, delta):
    u, true_u = smooth(shape, len(shape), 2, seed=8), smooth(shape, len(shape), 2, seed=9)
    pair = make_pair(shape, 2, displacement=true_u)
    error = np.abs((u - true_u).numpy())
    expected = np.where(error < delta, error**2 / 2, delta * (error - delta / 2)).mean()
    value = losses.HuberDisplacement(delta)(pair, make_registration(u))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def box(shape, axis, start, label=5):
    labels = torch.zeros(1, 1, *shape, dtype=torch.int64)
    at = [slice(2, 6)] * len(shape)
    at[axis] = slice(start, start + 4)
    labels[(0, 0, *at)] = label
    return labels


@SHAPES
@pytest.mark.parametrize(("step", "dice"), [(0.0, 0.75), (0.5, 0.875), (1.0, 1.0), (-3.0, 0.0)])
def test_soft_dice_of_shifted_boxes(shape, step, dice):
    for axis in range(len(shape)):
        pair = make_pair(shape, fixed_labels=box(shape, axis, 1), moving_labels=box(shape, axis, 2))
        u = torch.zeros(1, len(shape), *shape)
        u[:, axis] = step
        if step == -3.0:  # nothing but the background of the zero padding comes in
            pair["moving_labels"] = box(shape, axis, 0)
            u[:, axis] = 10
        value = losses.SoftDice()(pair, make_registration(u))
        assert value.item() == pytest.approx(1 - dice, abs=1e-4)


@SHAPES
def test_soft_dice_gradient_moves_the_structure_to_its_target(shape):
    for axis in range(len(shape)):
        pair = make_pair(shape, fixed_labels=box(shape, axis, 1), moving_labels=box(shape, axis, 3))
        u = torch.full((1, len(shape), *shape), 0.01, requires_grad=True)
        losses.SoftDice()(pair, make_registration(u)).backward()
        pull = -u.grad.sum(dim=[0, *range(2, u.ndim)])
        assert pull[axis] > 0.1
        assert pull.argmax() == axis


@SHAPES
def test_soft_dice_is_the_mean_over_the_structures_of_each_fixed_image(shape):
    pair, u = make_complete_pair(shape, batch=2), smooth(shape, len(shape), batch=2, seed=7)
    pair["fixed_labels"][1][pair["fixed_labels"][1] == 2] = 0  # one case lacks structure 2
    pair["moving_labels"][0][pair["moving_labels"][0] == 3] = 9  # missing here, 9 missing there
    grid, scores = np.indices(shape), []
    for case in range(2):
        fixed, moving = (pair[f"{side}_labels"][case, 0].numpy() for side in ("fixed", "moving"))
        for label in set(np.unique(fixed)) - {0}:
            f, m = fixed == label, (moving == label).astype(float)
            w = map_coordinates(m, grid + u[case].numpy(), order=1, mode="grid-constant")
            scores.append(2 * (f * w).sum() / (f.sum() + w.sum()))
    assert len(scores) == 5
    value = losses.SoftDice()(pair, make_registration(u))
    assert value.item() == pytest.approx(1 - np.mean(scores), abs=1e-4)


@SHAPES
def test_soft_dice_does_not_depend_on_the_values_of_labels(shape):
    pair, u = make_complete_pair(shape), smooth(shape, len(shape), seed=7)
    value = losses.SoftDice()(pair, make_registration(u))
    ids = torch.tensor([0, 614454277, 614454278, 16777217, 2**31 - 1])
    for side in ("fixed", "moving"):
        pair[f"{side}_labels"] = ids[pair[f"{side}_labels"].long()].int()
    assert losses.SoftDice()(pair, make_registration(u)).item() == pytest.approx(value.item())


@SHAPES
def test_soft_dice_without_any_structure_is_finite(shape):
    pair = make_complete_pair(shape)
    pair["fixed_labels"] = torch.zeros_like(pair["fixed_labels"])
    u = smooth(shape, len(shape)).requires_grad_()
    value = losses.SoftDice()(pair, make_registration(u))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(u.grad).all()


@SHAPES
def test_soft_dice_can_skip_unlabelled_pairs(shape):
    pair, u = make_complete_pair(shape), smooth(shape, len(shape), seed=7)
    lenient = losses.SoftDice(skip_unlabelled=True)
    assert lenient(pair, make_registration(u)) == losses.SoftDice()(pair, make_registration(u)) > 0
    for key in ("fixed_labels", "moving_labels"):
        without = {k: v for k, v in pair.items() if k != key}
        assert lenient(without, make_registration(u)) == 0


@SHAPES
def test_landmark_distance_is_in_millimetres_and_has_the_right_direction(shape):
    ndim = len(shape)
    start = make_complete_pair(shape)["fixed_points"]
    step = torch.arange(1.0, ndim + 1)
    pair = make_pair(shape, fixed_points=start, moving_points=start + step)
    length = (step * torch.tensor(SPACING[:ndim])).norm().item()
    for factor in (-1.0, 0.0, 1.0, 1.5):
        u = constant_field((factor * step).tolist(), shape)
        value = losses.LandmarkDistance()(pair, make_registration(u))
        assert value.item() == pytest.approx(abs(1 - factor) * length, rel=1e-5, abs=1e-5)


@SHAPES
def test_landmark_distance_interpolates_the_field(shape):
    matrix, pair = random_matrix(len(shape)), make_complete_pair(shape, batch=2)
    fixed, moving = pair["fixed_points"].numpy(), pair["moving_points"].numpy()
    error = (fixed + fixed @ matrix.T - moving) * np.array(SPACING[: len(shape)])
    u = linear_field(matrix, shape).expand(2, -1, *[-1] * len(shape))
    value = losses.LandmarkDistance()(pair, make_registration(u))
    assert value.item() == pytest.approx(np.linalg.norm(error, axis=-1).mean(), rel=1e-4)
