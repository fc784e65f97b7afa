"""Intervals, tests and ranks against scipy and values computed by hand."""

import numpy as np
import pytest
from scipy import stats

from regnet_lab.metrics import statistics

SAMPLE = np.array([0.61, 0.72, 0.55, 0.80, 0.67, 0.74, 0.49, 0.70, 0.66, 0.78])


def test_describe_ignores_nan_and_takes_the_worse_quantile():
    values = [4.0, np.nan, 1.0, 2.0, 5.0, 3.0]
    summary = statistics.describe(values, higher_is_better=True)
    assert summary["mean"] == 3
    assert summary["median"] == 3
    assert summary["sd"] == pytest.approx(np.sqrt(2))
    assert summary["worst30"] == pytest.approx(2.2)
    assert statistics.describe(values, higher_is_better=False)["worst30"] == pytest.approx(3.8)
    assert all(np.isnan(v) for v in statistics.describe([np.nan], True).values())


def test_bootstrap_interval_has_percentiles_of_resampled_means():
    low, high = statistics.bootstrap_interval(SAMPLE, seed=3)
    rng = np.random.default_rng(7)
    means = rng.choice(SAMPLE, (40_000, SAMPLE.size)).mean(1)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.003)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.003)
    expected = stats.bootstrap(
        (SAMPLE,), np.mean, n_resamples=10_000, method="percentile", batch=1000,
        random_state=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert (low, high) == tuple(expected)


def test_bootstrap_interval_depends_on_seed_and_level_and_needs_two_cases():
    assert statistics.bootstrap_interval(SAMPLE, 1) == statistics.bootstrap_interval(SAMPLE, 1)
    assert statistics.bootstrap_interval(SAMPLE, 1) != statistics.bootstrap_interval(SAMPLE, 2)
    low, high = statistics.bootstrap_interval([*SAMPLE, np.nan], level=0.5)
    wide = statistics.bootstrap_interval(SAMPLE)
    assert wide[0] < low < SAMPLE.mean() < high < wide[1]
    assert np.isnan(statistics.bootstrap_interval([0.5])).all()
    assert statistics.bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


def test_wilcoxon_equals_scipy_s_on_the_common_cases():
    second_sample = SAMPLE - np.array(
        [0.01, 0.02, -0.005, 0.03, 0.04, 0.015, -0.025, 0.05, 0.06, 0.07]
    )
    expected = stats.wilcoxon(SAMPLE, second_sample).pvalue
    assert statistics.wilcoxon_p_value(SAMPLE, second_sample) == pytest.approx(expected)
    assert expected < 0.05
    with_gaps = statistics.wilcoxon_p_value([*SAMPLE, np.nan, 1.0], [*second_sample, 0.0, np.nan])
    assert with_gaps == pytest.approx(expected)
    assert statistics.wilcoxon_p_value(SAMPLE, SAMPLE) == 1
    assert np.isnan(statistics.wilcoxon_p_value([np.nan], [1.0]))


def test_wilcoxon_of_five_equal_signs_is_two_over_thirty_two():
    assert statistics.wilcoxon_p_value([1.0, 2, 3, 4, 5], [0.0, 0, 0, 0, 0]) == pytest.approx(
        2 / 32
    )


def test_holm_equals_values_computed_by_hand():
    adjusted = statistics.adjust_holm([0.01, np.nan, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.adjust_holm([0.5, 0.9, 0.6]), [1, 1, 1])
    assert statistics.adjust_holm([]).size == 0


def test_holm_agrees_with_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).uniform(size=12) ** 3
    np.testing.assert_allclose(
        statistics.adjust_holm(p), multitest.multipletests(p, method="holm")[1]
    )


BAD, GOOD = np.linspace(0.4, 0.5, 20), np.linspace(0.7, 0.8, 20)
SIMILAR = GOOD + 0.002


def test_wins_count_significant_rank_sum_tests_in_the_right_direction():
    scores = {"good": GOOD, "similar": SIMILAR, "bad": BAD, "absent": [np.nan] * 20}
    assert stats.ranksums(GOOD, SIMILAR).pvalue > 0.05
    assert stats.ranksums(GOOD, BAD).pvalue < 0.001
    assert statistics.count_wins(scores, True) == {"good": 2, "similar": 2, "bad": 1, "absent": 0}
    assert statistics.count_wins(scores, False) == {"good": 1, "similar": 1, "bad": 3, "absent": 0}


def test_metric_scores_range_from_a_tenth_to_one_and_ties_share_ranks():
    # places 0 .. 3 are worth 0.1, 0.4, 0.7, 1; the two best share 0.7 and 1
    scores = {"good": GOOD, "similar": SIMILAR, "bad": BAD, "absent": [np.nan] * 20}
    metric_scores = statistics.compute_metric_scores(scores, True)
    assert metric_scores == pytest.approx(
        {"good": 0.85, "similar": 0.85, "bad": 0.4, "absent": 0.1}
    )
    two = statistics.compute_metric_scores({"good": GOOD, "bad": BAD}, higher_is_better=False)
    assert two == pytest.approx({"good": 0.1, "bad": 1.0})
    without = statistics.compute_metric_scores({"x": [np.nan], "y": []}, True)
    assert without == {"x": 0.1, "y": 0.1}


def test_the_rank_score_is_the_geometric_mean_over_metrics():
    rank_scores = statistics.compute_rank_scores(
        [{"a": 1.0, "b": 0.1}, {"a": 0.1, "b": 1.0}, {"a": 1, "b": 0.1}]
    )
    assert rank_scores == pytest.approx({"a": 0.1 ** (1 / 3), "b": 0.1 ** (2 / 3)})


def test_hardest_cases_have_the_lowest_initial_scores():
    initial = [0.5, 0.1, 0.9, np.nan, 0.3, 0.2, 0.7, 0.8, 0.6, 0.4, 0.95]
    expected = np.isin(np.arange(11), [1, 5, 4])
    np.testing.assert_array_equal(statistics.select_hardest(initial), expected)
    assert not statistics.select_hardest([np.nan, np.nan]).any()
