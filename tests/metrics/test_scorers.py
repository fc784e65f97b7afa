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
from scipy.ndimage import correlate, gaussian_filter, map_coordinates

from regnet_lab import metrics, ops
from regnet_lab.metrics import overlap, surface_distance
from regnet_lab.types import Pair

SHAPES = pytest.mark.parametrize("shape", [(17, 19), (12, 13, 14)])
SPACING = (1.5, 0.7, 3.0)


def textured(shape, rng, count=1, sigma=2.0):
    noise = gaussian_filter(rng.normal(size=(count, *shape)), [0, *[sigma] * len(shape)])
    return noise / noise.std()


def as_pair(fixed, moving, **others):
    def batched(x):
        return torch.as_tensor(np.asarray(x))[None]

    spacing = others.pop("spacing", SPACING[: fixed.ndim])
    return Pair(
        fixed=batched(fixed)[None],
        moving=batched(moving)[None],
        spacing=batched(np.array(spacing)),
        name=["case"],
        **{
            key: batched(value)[None] if key.endswith(("labels", "mask")) else batched(value)
            for key, value in others.items()
        },
    )


@pytest.fixture
def case(shape):
    """Labels 0..4 all over the grid, images, landmarks, a mask and a field that folds."""
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
    """What the Learn2Reg evaluator computes, said again in numpy and scipy."""
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
def test_l2r_gives_the_numbers_of_the_official_evaluator(case):
    pair, u = case
    expected = official(pair, u)
    assert 1 < expected["folds_percent"] < 50
    assert metrics.l2r(pair, u) == pytest.approx(expected, rel=1e-9)


@SHAPES
def test_l2r_without_a_mask_looks_at_the_whole_interior(case):
    pair, u = case
    whole = pair | {"fixed_mask": torch.ones_like(pair["fixed_mask"])}
    del pair["fixed_mask"]
    score = metrics.l2r(pair, u)
    assert score == pytest.approx(metrics.l2r(whole, u))
    assert score["sdlogj"] == pytest.approx(official(whole, u)["sdlogj"])


@SHAPES
def test_quick_is_a_part_of_strict(case):
    quick, strict = metrics.quick(*case), metrics.strict(*case)
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
    score = metrics.strict(pair, u)
    for name, expected in {
        "dice": compute_dice(*onehot),
        "hd95_mm": compute_hausdorff_distance(
            *onehot, include_background=True, percentile=95, spacing=spacing
        ),
        "asd_mm": compute_average_surface_distance(
            *onehot, include_background=True, symmetric=True, spacing=spacing
        ),
    }.items():
        found = [score[f"{name}/{label}"] for label in range(1, 5)]
        assert found == pytest.approx(expected[0].tolist(), rel=1e-5), name


@SHAPES
def test_shifted_box_has_known_dice_and_distances_in_millimetres(shape):
    moving = np.zeros(shape, int)
    moving[(slice(5, 9), *[slice(4, 8)] * (len(shape) - 1))] = 7
    fixed = np.roll(moving, -2, axis=0)
    pair = as_pair(fixed * 1.0, moving * 1.0, fixed_labels=fixed, moving_labels=moving)
    still = torch.zeros(1, len(shape), *shape)
    score = metrics.strict(pair, still)
    assert score["dice/7"] == score["dice"] == pytest.approx(0.5)
    assert score["hd95_mm/7"] == score["hd95_mm"] == pytest.approx(2 * SPACING[0])
    assert 0 < score["asd_mm"] < score["hd95_mm"]
    assert metrics.l2r(pair, still)["hd95_vox"] == pytest.approx(2.0)

    right = still + 2.0 * torch.eye(len(shape))[0].view(1, -1, *[1] * len(shape))
    score = metrics.strict(pair, right)  # fixed(x) = moving(x + 2)
    assert (score["dice"], score["hd95_mm"], score["asd_mm"]) == (1, 0, 0)
    assert score["rmse"] == pytest.approx(0, abs=1e-9)


@SHAPES
@pytest.mark.parametrize("axis", [0, 1])
def test_parallel_sheets_are_as_far_apart_as_the_spacing_says(shape, axis):
    first, second = np.zeros((2, *shape), bool)
    np.moveaxis(first, axis, 0)[3] = True
    np.moveaxis(second, axis, 0)[7] = True
    distances = metrics.surface_distances(first, second, np.array(SPACING[: len(shape)]))
    assert metrics.hausdorff95(*distances) == pytest.approx(4 * SPACING[axis])
    assert metrics.average_surface_distance(*distances) == pytest.approx(4 * SPACING[axis])


def test_hd95_is_the_worse_direction_and_ignores_five_percent():
    line = np.zeros((60, 41), bool)
    line[0] = True
    spur = line.copy()
    spur[1:31, 0] = True  # 30 of 71 voxels, at distances 1 to 30
    there, back = metrics.surface_distances(line, spur, np.array([2.0, 2.0]))
    assert there.max() == 0
    expected = 2 * np.percentile([*[0] * 41, *range(1, 31)], 95)
    assert metrics.hausdorff95(there, back) == pytest.approx(expected)
    assert metrics.average_surface_distance(there, back) == pytest.approx(2 * 465 / (41 + 71))


@SHAPES
def test_a_structure_lost_costs_everything_and_an_unknown_one_nothing(shape):
    fixed, moving = np.zeros((2, *shape), int)
    block = (slice(5, 9),) * len(shape)
    fixed[block], moving[block] = 1, 1
    fixed[(0,) * len(shape)] = 2  # only in the fixed image
    moving[(1,) * len(shape)] = 3  # only in the moving image
    pair = as_pair(fixed * 1.0, moving * 1.0, fixed_labels=fixed, moving_labels=moving)
    away = torch.full((1, len(shape), *shape), 1000.0)
    strict, l2r = metrics.strict(pair, away), metrics.l2r(pair, away)
    assert strict["dice/1"] == strict["dice"] == l2r["dice"] == 0
    steps = np.array(shape) - 1
    diagonal = np.linalg.norm(steps * SPACING[: len(shape)])
    assert strict["hd95_mm"] == strict["asd_mm"] == pytest.approx(diagonal)
    assert l2r["hd95_vox"] == pytest.approx(np.linalg.norm(steps))
    for key, label in product(("dice", "hd95_mm", "asd_mm"), (2, 3)):
        assert np.isnan(strict[f"{key}/{label}"])


@SHAPES
def test_labels_that_cannot_be_compared_leave_a_mean_that_is_not_known(shape):
    fixed, moving = np.zeros((2, *shape), int)
    fixed[(2,) * len(shape)] = 1
    pair = as_pair(fixed * 1.0, fixed * 1.0, fixed_labels=fixed, moving_labels=moving)
    assert np.isnan(metrics.quick(pair, torch.zeros(1, len(shape), *shape))["dice"])


@SHAPES
def test_dice_takes_labels_of_any_value(shape):
    rng = np.random.default_rng(0)
    values = np.array([0, -3, 17, 2035, 10**9])
    fixed, warped = values[rng.integers(0, 5, (2, *shape))]
    found = metrics.dice(fixed, warped, warped)
    assert list(found) == [-3, 17, 2035, 10**9]
    for label, score in found.items():
        a, b = fixed == label, warped == label
        assert score == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


@SHAPES
def test_landmarks_and_known_answer_tell_the_right_direction_from_the_wrong_one(shape):
    ndim = len(shape)
    grid = ops.identity_grid(shape, torch.zeros((), dtype=torch.float64))
    slope = torch.arange(1.0, 1 + ndim * ndim, dtype=torch.float64).view(ndim, ndim) / 40
    u = torch.einsum("ij,bj...->bi...", slope, grid) - 0.4  # affine, so linear reading is exact
    start = np.random.default_rng(1).uniform(1, np.array(shape) - 2, (9, ndim))
    end = start + start @ slope.numpy().T - 0.4
    pair = as_pair(
        np.ones(shape), np.ones(shape), fixed_points=start, moving_points=end, displacement=u[0]
    )
    right = metrics.quick(pair, u)
    assert right["tre_mm"] == pytest.approx(0, abs=1e-9)
    assert right["epe_vox"] == 0
    wrong = metrics.quick(pair, -u)
    errors = 2 * np.linalg.norm((end - start) * SPACING[:ndim], axis=1)
    assert wrong["tre_mm"] == pytest.approx(errors.mean())
    assert wrong["tre30_mm"] == pytest.approx(np.quantile(errors, 0.7))
    assert wrong["epe_vox"] == pytest.approx(2 * u.square().sum(1).sqrt().mean().item())


@SHAPES
def test_known_answer_counts_only_inside_the_mask(shape):
    known = np.zeros((len(shape), *shape))
    mask = np.zeros(shape, bool)
    mask[3] = True
    known[:, ~mask] = 100.0
    known[0, mask] = 3.0
    pair = as_pair(np.ones(shape), np.ones(shape), displacement=known, fixed_mask=mask)
    score = metrics.quick(pair, torch.zeros(1, len(shape), *shape))
    assert score["epe_vox"] == pytest.approx(3.0)


@SHAPES
def test_errors_against_a_known_answer_by_axis_and_by_class(shape):
    rng, ndim = np.random.default_rng(3), len(shape)
    known = textured(shape, rng, ndim) * 3
    u = torch.from_numpy(textured(shape, rng, ndim))[None]
    mask = textured(shape, rng)[0] > 0
    pair = as_pair(np.ones(shape), np.ones(shape), displacement=known, fixed_mask=mask)
    score = metrics.strict(pair, u, thresholds=[2.0, 5.0, 1000.0])
    axes, classes = [[] for _ in shape], {"below_2": [], "2_to_5": [], "5_to_1000": []}
    for x in map(tuple, np.argwhere(mask)):
        errors = [abs(float(u[0, k][x]) - known[k][x]) * SPACING[k] for k in range(ndim)]
        length = math.sqrt(sum((known[k][x] * SPACING[k]) ** 2 for k in range(ndim)))
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
    assert not any("_to_" in name for name in metrics.strict(pair, u, thresholds=[]))
    nothing = as_pair(np.ones(shape), np.ones(shape), displacement=known, fixed_mask=mask & False)
    assert math.isnan(metrics.strict(nothing, u)["mae_axis0_mm"])


@SHAPES
def test_an_absent_key_leaves_its_numbers_out(shape):
    rng = np.random.default_rng(2)
    pair, u = as_pair(*textured(shape, rng, 2)), torch.zeros(1, len(shape), *shape)
    assert metrics.quick(pair, u).keys() == {"rmse", "sdlogj", "folds_percent"}
    assert metrics.l2r(pair, u).keys() == {"sdlogj", "folds_percent"}
    regularity = {"sdlogj", "sdlogj_plain", "folds_percent", "ndv_percent"}
    assert metrics.strict(pair, u).keys() == {"rmse"} | regularity
    difference = pair["fixed"] - pair["moving"]
    expected = difference.square().mean().sqrt().item()
    assert metrics.quick(pair, u)["rmse"] == pytest.approx(expected)


@SHAPES
def test_identity_is_perfectly_regular_and_a_reflection_entirely_folded(shape):
    ndim = len(shape)
    grid = ops.identity_grid(shape, torch.zeros((), dtype=torch.float64))
    pair = as_pair(np.ones(shape), np.ones(shape))
    still = metrics.strict(pair, 0 * grid)
    for key in ("sdlogj", "sdlogj_plain", "folds_percent", "ndv_percent"):
        assert still[key] == 0
    for axis in range(ndim):
        mirror = torch.zeros_like(grid)
        mirror[:, axis] = -2 * grid[:, axis]
        score = metrics.strict(pair, mirror)
        assert score["folds_percent"] == 100
        assert score["ndv_percent"] == pytest.approx(100)


@SHAPES
def test_deviations_of_log_determinants_follow_the_closed_form(shape):
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
    found = metrics.folds_percent(metrics.interior_determinant(u))
    assert found == pytest.approx(100 * (shape[0] - 9) / (shape[0] - 4))


def test_a_determinant_of_zero_is_a_fold():
    assert metrics.folds_percent(np.array([0.0, 1.0, -1.0, 2.0])) == 50


@SHAPES
def test_ndv_sees_the_fold_of_one_voxel_that_central_differences_miss(shape):
    ndim = len(shape)
    u = np.zeros((ndim, *shape))
    jump = 1.5
    u[0][(6,) * ndim] = jump  # one voxel passes its neighbour along axis 0
    assert metrics.folds_percent(metrics.interior_determinant(u)) == 0
    # Corner simplices with that voxel and its neighbour ahead have an edge of 1 - 1.5 = -0.5.
    # Each of the 2^(D-1) cells round that edge has one at either end, one for each way.
    cells_round_edge = 2 ** (ndim - 1)
    simplex = (jump - 1) / math.factorial(ndim)
    found = metrics.ndv_percent(u) / 100 * np.prod(np.array(shape) - 1)
    assert found == pytest.approx(cells_round_edge * simplex)


@pytest.mark.parametrize("shape", [(40, 9), (35, 7, 6)])
def test_upright_less_reversed_volume_is_the_volume_of_the_grid(shape):
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
    assert metrics.strict(pair, torch.from_numpy(u)[None])["ndv_percent"] == pytest.approx(100)
    assert metrics.ndv_percent(u, ~mask) == 0


@pytest.mark.parametrize("shape", [(1, 4), (4, 9), (2, 4, 1), (5, 4, 9)])
def test_tiny_grids_have_no_interior_but_do_not_crash(shape):
    pair = as_pair(np.ones(shape), np.ones(shape), fixed_mask=np.ones(shape))
    score = metrics.strict(pair, torch.zeros(1, len(shape), *shape))
    for key in ("sdlogj", "sdlogj_plain", "folds_percent"):
        assert np.isnan(score[key])
    assert np.isnan(score["ndv_percent"]) == (1 in shape)


@SHAPES
def test_a_field_that_is_not_a_number_is_a_fold_and_a_loss(case):
    pair, u = case
    broken = metrics.strict(pair, u * torch.nan)
    assert broken["folds_percent"] == 100
    assert broken["dice"] == 0
    assert np.isnan(broken["tre_mm"])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_do_not_depend_on_precision_or_gradients_of_the_field(case, dtype):
    pair, u = case
    u = (u * 8).round() / 8  # exact in bfloat16
    rounded = u.to(dtype).requires_grad_()
    assert metrics.strict(pair, rounded) == pytest.approx(metrics.strict(pair, u), nan_ok=True)


@SHAPES
def test_two_cases_at_once_are_refused(case):
    pair, u = case
    with pytest.raises(ValueError, match="too many values"):
        metrics.quick(pair, u.repeat(2, *[1] * (u.ndim - 1)))


def test_tables_of_labels_agree_with_sorting(monkeypatch):
    rng = np.random.default_rng(0)
    fixed, warped = (rng.choice([0, 3, 7, 40], (6, 7, 8)) for _ in range(2))
    values, table = overlap.joint_histogram(fixed, warped)
    assert values.tolist() == [0, 3, 7, 40]
    assert np.array_equal(
        table, [[((fixed == i) & (warped == j)).sum() for j in values] for i in values]
    )
    monkeypatch.setattr(overlap, "TABLE", 0)
    for tabled, found in zip((values, table), overlap.joint_histogram(fixed, warped), strict=True):
        assert np.array_equal(tabled, found)


@pytest.mark.parametrize("labels", [[-5, 0, 3], [0, 2, 10**9]])
def test_any_whole_numbers_may_be_labels(labels):
    rng = np.random.default_rng(0)
    fixed, warped = (rng.choice(labels, (6, 7)) for _ in range(2))
    scores = metrics.dice(fixed, warped, warped)
    for label in set(labels) - {0}:
        both = ((fixed == label) & (warped == label)).sum()
        either = (fixed == label).sum() + (warped == label).sum()
        assert scores[label] == pytest.approx(2 * both / either)


def test_boxes_hold_a_label_in_both_volumes():
    fixed, warped = np.zeros((2, 6, 7), int)
    fixed[1:3, 2], warped[4, 5], fixed[5, 6] = 1, 1, 2
    boxes = surface_distance.boxes(fixed, warped, [1, 2])
    assert boxes[1] == (slice(1, 5), slice(2, 6))
    assert fixed[boxes[2]].shape == fixed.shape
