"""The scorers against the Learn2Reg evaluator, MONAI and closed forms."""

import math
from itertools import product

import numpy as np
import pytest
import surface_distance as deepmind_surface_distance
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
)
from scipy.ndimage import correlate, map_coordinates

from regnet_lab import metrics, ops
from tests.helpers.metrics import SHAPES, SPACING, as_pair, textured


@pytest.fixture
def case(shape):
    """Labels 0..4 on the whole grid, images, landmarks, a mask and a folding field."""
    rng = np.random.default_rng(sum(shape))
    ndim = len(shape)
    labels = [textured(shape, rng, 5).argmax(0) for _ in range(2)]
    u = textured(shape, rng, ndim, sigma=1.5) * 1.5
    start = rng.uniform(1, np.array(shape) - 2, (20, ndim))
    pair = as_pair(
        *textured(shape, rng, 2),
        fixed_labels=labels[0],
        moving_labels=labels[1],
        fixed_points=start,
        moving_points=start + rng.normal(size=start.shape),
        fixed_mask=(textured(shape, rng)[0] > -0.5).astype(np.uint8),
        displacement=u + rng.normal(size=u.shape),
    )
    return pair, torch.from_numpy(u)[None]


def official(pair, u):
    """The metrics of the Learn2Reg evaluator, reimplemented in numpy and scipy."""
    u = u[0].numpy()
    fixed, moving, mask = (
        pair[k][0, 0].numpy() for k in ("fixed_labels", "moving_labels", "fixed_mask")
    )
    start, end, spacing = (pair[k][0].numpy() for k in ("fixed_points", "moving_points", "spacing"))
    ndim, inner = fixed.ndim, (slice(2, -2),) * fixed.ndim
    warped = map_coordinates(moving.astype(float), np.indices(fixed.shape) + u, order=0)

    expected = {}
    for label in range(1, 5):
        a, b = fixed == label, warped == label
        distances = deepmind_surface_distance.compute_surface_distances(a, b, np.ones(ndim))
        expected[f"dice/{label}"] = 2 * (a & b).sum() / (a.sum() + b.sum())
        expected[f"hd95_vox/{label}"] = deepmind_surface_distance.compute_robust_hausdorff(
            distances, 95.0
        )
    for name in ("dice", "hd95_vox"):
        expected[name] = np.mean([expected[f"{name}/{label}"] for label in range(1, 5)])

    kernel = np.array([-0.5, 0, 0.5])
    jacobian = np.empty((*fixed.shape, ndim, ndim))
    for i, j in product(range(ndim), repeat=2):
        along = kernel.reshape([3 if axis == j else 1 for axis in range(ndim)])
        jacobian[..., i, j] = correlate(u[i], along, mode="constant", cval=0.0) + (i == j)
    determinant = np.linalg.det(jacobian)[inner]
    logarithm = np.log((determinant + 3).clip(1e-9, 1e9))
    expected["sdlogj"] = np.ma.MaskedArray(logarithm, 1 - mask[inner]).std()
    expected["folds_percent"] = 100 * np.mean(determinant[mask[inner] == 1] <= 0)

    moved = start + np.stack([map_coordinates(c, start.T) for c in u], 1)
    errors = np.linalg.norm((moved - end) * spacing, axis=1)
    expected["tre_mm"], expected["tre30_mm"] = errors.mean(), np.quantile(errors, 0.7)
    return expected


@SHAPES
def test_learn2reg_scorer_equals_the_official_evaluator(case):
    pair, u = case
    expected = official(pair, u)
    assert 1 < expected["folds_percent"] < 50
    assert metrics.score_learn2reg(pair, u) == pytest.approx(expected, rel=1e-9)


@SHAPES
def test_learn2reg_scorer_without_a_mask_uses_the_whole_interior(case):
    pair, u = case
    whole = pair | {"fixed_mask": torch.ones_like(pair["fixed_mask"])}
    del pair["fixed_mask"]
    score = metrics.score_learn2reg(pair, u)
    assert score == pytest.approx(metrics.score_learn2reg(whole, u))
    assert score["sdlogj"] == pytest.approx(official(whole, u)["sdlogj"])


@SHAPES
def test_validation_metrics_are_a_subset_of_the_full_metrics(case):
    quick, strict = metrics.score_validation(*case), metrics.score_full(*case)
    assert quick.items() <= strict.items()
    extra = {key.split("/")[0] for key in strict.keys() - quick.keys()}
    assert {name for name in extra if not name.startswith("mae_")} == {
        "hd95_mm",
        "asd_mm",
        "sdlogj_plain",
        "ndv_percent",
    }


@SHAPES
def test_dice_and_surfaces_agree_with_monai(case):
    pair, u = case
    pair["fixed_labels"][..., :3] = 1  # a structure that touches the border
    warped = ops.warp(pair["moving_labels"], u, "nearest", "zeros")
    fixed = pair["fixed_labels"]
    onehot = [torch.cat([x == label for label in range(1, 5)], 1).float() for x in (warped, fixed)]
    spacing = pair["spacing"][0].tolist()
    score = metrics.score_full(pair, u)
    for name, expected in {
        "dice": compute_dice(*onehot),
        "hd95_mm": compute_hausdorff_distance(
            *onehot, include_background=True, percentile=95, spacing=spacing
        ),
        "asd_mm": compute_average_surface_distance(
            *onehot, include_background=True, symmetric=True, spacing=spacing
        ),
    }.items():
        scores = [score[f"{name}/{label}"] for label in range(1, 5)]
        assert scores == pytest.approx(expected[0].tolist(), rel=1e-5), name


@SHAPES
@pytest.mark.parametrize("name", ["score_validation", "score_full", "score_learn2reg"])
def test_scores_do_not_depend_on_the_values_of_labels(case, name):
    ids = torch.tensor([0, 614454277, 614454278, 16777217, 2**31 - 1])
    pair, u = case
    small = getattr(metrics, name)(pair, u)
    renumbered = {key: ids[pair[key]].int() for key in ("fixed_labels", "moving_labels")}
    large = getattr(metrics, name)({**pair, **renumbered}, u)
    assert "dice/614454277" in large
    for key, value in small.items():
        measure, _, label = key.partition("/")
        other = f"{measure}/{ids[int(label)]}" if label.isdigit() else key
        assert large[other] == pytest.approx(value, nan_ok=True), key


@SHAPES
def test_a_lost_structure_has_the_worst_score_and_an_incomparable_one_is_nan(shape):
    fixed, moving = np.zeros((2, *shape), int)
    block = (slice(5, 9),) * len(shape)
    fixed[block], moving[block] = 1, 1
    fixed[(0,) * len(shape)] = 2  # only in the fixed image
    moving[(1,) * len(shape)] = 3  # only in the moving image
    pair = as_pair(fixed * 1.0, moving * 1.0, fixed_labels=fixed, moving_labels=moving)
    away = torch.full((1, len(shape), *shape), 1000.0)
    strict, l2r = metrics.score_full(pair, away), metrics.score_learn2reg(pair, away)
    assert strict["dice/1"] == strict["dice"] == l2r["dice"] == 0
    steps = np.array(shape) - 1
    diagonal = np.linalg.norm(steps * SPACING[: len(shape)])
    assert strict["hd95_mm"] == strict["asd_mm"] == pytest.approx(diagonal)
    assert l2r["hd95_vox"] == pytest.approx(np.linalg.norm(steps))
    for key, label in product(("dice", "hd95_mm", "asd_mm"), (2, 3)):
        assert np.isnan(strict[f"{key}/{label}"])


@SHAPES
def test_mean_of_incomparable_labels_is_nan(shape):
    fixed, moving = np.zeros((2, *shape), int)
    fixed[(2,) * len(shape)] = 1
    pair = as_pair(fixed * 1.0, fixed * 1.0, fixed_labels=fixed, moving_labels=moving)
    assert np.isnan(metrics.score_validation(pair, torch.zeros(1, len(shape), *shape))["dice"])


@SHAPES
def test_landmark_and_endpoint_errors_depend_on_the_direction(shape):
    ndim = len(shape)
    grid = ops.identity_grid(shape, torch.zeros((), dtype=torch.float64))
    slope = torch.arange(1.0, 1 + ndim * ndim, dtype=torch.float64).view(ndim, ndim) / 40
    u = torch.einsum("ij,bj...->bi...", slope, grid) - 0.4  # affine, so linear reading is exact
    start = np.random.default_rng(1).uniform(1, np.array(shape) - 2, (9, ndim))
    end = start + start @ slope.numpy().T - 0.4
    pair = as_pair(
        np.ones(shape), np.ones(shape), fixed_points=start, moving_points=end, displacement=u[0]
    )
    right = metrics.score_validation(pair, u)
    assert right["tre_mm"] == pytest.approx(0, abs=1e-9)
    assert right["epe_vox"] == 0
    wrong = metrics.score_validation(pair, -u)
    errors = 2 * np.linalg.norm((end - start) * SPACING[:ndim], axis=1)
    assert wrong["tre_mm"] == pytest.approx(errors.mean())
    assert wrong["tre30_mm"] == pytest.approx(np.quantile(errors, 0.7))
    assert wrong["epe_vox"] == pytest.approx(2 * u.square().sum(1).sqrt().mean().item())


@SHAPES
def test_endpoint_error_counts_only_inside_the_mask(shape):
    true_u = np.zeros((len(shape), *shape))
    mask = np.zeros(shape, bool)
    mask[3] = True
    true_u[:, ~mask] = 100.0
    true_u[0, mask] = 3.0
    pair = as_pair(np.ones(shape), np.ones(shape), displacement=true_u, fixed_mask=mask)
    score = metrics.score_validation(pair, torch.zeros(1, len(shape), *shape))
    assert score["epe_vox"] == pytest.approx(3.0)


@SHAPES
def test_mean_absolute_errors_by_axis_and_by_class(shape):
    rng, ndim = np.random.default_rng(3), len(shape)
    true_u = textured(shape, rng, ndim) * 3
    u = torch.from_numpy(textured(shape, rng, ndim))[None]
    mask = textured(shape, rng)[0] > 0
    pair = as_pair(np.ones(shape), np.ones(shape), displacement=true_u, fixed_mask=mask)
    score = metrics.score_full(pair, u, displacement_thresholds=[2.0, 5.0, 1000.0])
    axes, classes = [[] for _ in shape], {"below_2": [], "2_to_5": [], "5_to_1000": []}
    for x in map(tuple, np.argwhere(mask)):
        errors = [abs(float(u[0, k][x]) - true_u[k][x]) * SPACING[k] for k in range(ndim)]
        length = math.sqrt(sum((true_u[k][x] * SPACING[k]) ** 2 for k in range(ndim)))
        name = "below_2" if length < 2 else "2_to_5" if length < 5 else "5_to_1000"
        classes[name] += errors
        for k, error in enumerate(errors):
            axes[k].append(error)
    for k, errors in enumerate(axes):
        assert score[f"mae_axis{k}_mm"] == pytest.approx(np.mean(errors))
    for name, errors in classes.items():
        assert len(errors) > 20
        assert score[f"mae_{name}_mm"] == pytest.approx(np.mean(errors))
    assert math.isnan(score["mae_from_1000_mm"])
    assert not any(
        "_to_" in name for name in metrics.score_full(pair, u, displacement_thresholds=[])
    )
    nothing = as_pair(np.ones(shape), np.ones(shape), displacement=true_u, fixed_mask=mask & False)
    assert math.isnan(metrics.score_full(nothing, u)["mae_axis0_mm"])


@SHAPES
def test_metrics_without_their_data_are_left_out(shape):
    rng = np.random.default_rng(2)
    pair, u = as_pair(*textured(shape, rng, 2)), torch.zeros(1, len(shape), *shape)
    assert metrics.score_validation(pair, u).keys() == {"rmse", "sdlogj", "folds_percent"}
    assert metrics.score_learn2reg(pair, u).keys() == {"sdlogj", "folds_percent"}
    regularity = {"sdlogj", "sdlogj_plain", "folds_percent", "ndv_percent"}
    assert metrics.score_full(pair, u).keys() == {"rmse"} | regularity
    difference = pair["fixed"] - pair["moving"]
    expected = difference.square().mean().sqrt().item()
    assert metrics.score_validation(pair, u)["rmse"] == pytest.approx(expected)


@SHAPES
def test_a_nan_field_counts_as_folded_and_scores_worst(case):
    pair, u = case
    broken = metrics.score_full(pair, u * torch.nan)
    assert broken["folds_percent"] == 100
    assert broken["dice"] == 0
    assert np.isnan(broken["tre_mm"])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_do_not_depend_on_the_field_s_dtype_or_graph(case, dtype):
    pair, u = case
    u = (u * 8).round() / 8  # exact in bfloat16
    rounded = u.to(dtype).requires_grad_()
    assert metrics.score_full(pair, rounded) == pytest.approx(
        metrics.score_full(pair, u), nan_ok=True
    )


@SHAPES
def test_a_batch_of_two_cases_is_refused(case):
    pair, u = case
    with pytest.raises(ValueError, match="too many values"):
        metrics.score_validation(pair, u.repeat(2, *[1] * (u.ndim - 1)))
