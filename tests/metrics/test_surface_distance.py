"""Surface distances of simple shapes."""

import numpy as np
import pytest
import torch

from regnet_lab import metrics
from regnet_lab.metrics import surface_distance
from tests.helpers.metrics import SHAPES, SPACING, as_pair


@SHAPES
def test_shifted_box_has_known_dice_and_distances_in_millimetres(shape):
    moving = np.zeros(shape, int)
    moving[(slice(5, 9), *[slice(4, 8)] * (len(shape) - 1))] = 7
    fixed = np.roll(moving, -2, axis=0)
    pair = as_pair(fixed * 1.0, moving * 1.0, fixed_labels=fixed, moving_labels=moving)
    still = torch.zeros(1, len(shape), *shape)
    score = metrics.score_full(pair, still)
    assert score["dice/7"] == score["dice"] == pytest.approx(0.5)
    assert score["hd95_mm/7"] == score["hd95_mm"] == pytest.approx(2 * SPACING[0])
    assert 0 < score["asd_mm"] < score["hd95_mm"]
    assert metrics.score_learn2reg(pair, still)["hd95_vox"] == pytest.approx(2.0)

    right = still + 2.0 * torch.eye(len(shape))[0].view(1, -1, *[1] * len(shape))
    score = metrics.score_full(pair, right)  # fixed(x) = moving(x + 2)
    assert (score["dice"], score["hd95_mm"], score["asd_mm"]) == (1, 0, 0)
    assert score["rmse"] == pytest.approx(0, abs=1e-9)


@SHAPES
@pytest.mark.parametrize("axis", [0, 1])
def test_distance_of_parallel_sheets_depends_on_the_spacing(shape, axis):
    first, second = np.zeros((2, *shape), bool)
    np.moveaxis(first, axis, 0)[3] = True
    np.moveaxis(second, axis, 0)[7] = True
    distances = metrics.surface_distances(first, second, np.array(SPACING[: len(shape)]))
    assert metrics.hausdorff95(*distances) == pytest.approx(4 * SPACING[axis])
    assert metrics.average_surface_distance(*distances) == pytest.approx(4 * SPACING[axis])


def test_hd95_is_the_larger_direction_and_ignores_five_percent():
    line = np.zeros((60, 41), bool)
    line[0] = True
    spur = line.copy()
    spur[1:31, 0] = True  # 30 of 71 voxels, at distances 1 to 30
    line_to_spur, spur_to_line = metrics.surface_distances(line, spur, np.array([2.0, 2.0]))
    assert line_to_spur.max() == 0
    expected = 2 * np.percentile([*[0] * 41, *range(1, 31)], 95)
    assert metrics.hausdorff95(line_to_spur, spur_to_line) == pytest.approx(expected)
    assert metrics.average_surface_distance(line_to_spur, spur_to_line) == pytest.approx(
        2 * 465 / (41 + 71)
    )


def test_label_boxes_contain_a_label_in_both_volumes():
    fixed, warped = np.zeros((2, 6, 7), int)
    fixed[1:3, 2], warped[4, 5], fixed[5, 6] = 1, 1, 2
    boxes = surface_distance.find_label_boxes(fixed, warped, [1, 2])
    assert boxes[1] == (slice(1, 5), slice(2, 6))
    assert fixed[boxes[2]].shape == fixed.shape
