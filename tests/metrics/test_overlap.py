"""Dice of any labels."""

import numpy as np
import pytest

from regnet_lab import metrics
from regnet_lab.metrics import overlap
from tests.helpers.metrics import SHAPES


@SHAPES
def test_dice_takes_labels_of_any_value(shape):
    rng = np.random.default_rng(0)
    values = np.array([0, -3, 17, 2035, 10**9])
    fixed, warped = values[rng.integers(0, 5, (2, *shape))]
    scores = metrics.dice(fixed, warped, warped)
    assert list(scores) == [-3, 17, 2035, 10**9]
    for label, score in scores.items():
        a, b = fixed == label, warped == label
        assert score == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_joint_histogram_by_table_equals_sorting(monkeypatch):
    rng = np.random.default_rng(0)
    fixed, warped = (rng.choice([0, 3, 7, 40], (6, 7, 8)) for _ in range(2))
    values, table = overlap.joint_histogram(fixed, warped)
    assert values.tolist() == [0, 3, 7, 40]
    assert np.array_equal(
        table, [[((fixed == i) & (warped == j)).sum() for j in values] for i in values]
    )
    monkeypatch.setattr(overlap, "MAX_TABLE_LABELS", 0)
    for tabled, counted in zip(
        (values, table), overlap.joint_histogram(fixed, warped), strict=True
    ):
        assert np.array_equal(tabled, counted)


@pytest.mark.parametrize("labels", [[-5, 0, 3], [0, 2, 10**9]])
def test_labels_may_be_any_integers(labels):
    rng = np.random.default_rng(0)
    fixed, warped = (rng.choice(labels, (6, 7)) for _ in range(2))
    scores = metrics.dice(fixed, warped, warped)
    for label in set(labels) - {0}:
        intersection = ((fixed == label) & (warped == label)).sum()
        either = (fixed == label).sum() + (warped == label).sum()
        assert scores[label] == pytest.approx(2 * intersection / either)
