"""Statistics of a method's scores over cases: moments, confidence intervals, tests, ranks.

Scores are one number for each case; NaN means "not defined for this case" and is left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Values = NDArray[np.float64]

MIN_SCORE, MAX_SCORE = 0.1, 1.0  # Learn2Reg's score of the last and of the first in a metric
SIGNIFICANCE_LEVEL = 0.05


def drop_nan(values: ArrayLike) -> Values:
    """Return the numbers that are not NaN, as float64."""
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def bootstrap_interval(
    values: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean (Efron, Annals of Statistics 1979).

    NaN for fewer than two cases.
    """
    sample = drop_nan(values)
    if sample.size < 2:
        return np.nan, np.nan
    interval = stats.bootstrap(
        (sample,), np.mean, n_resamples=resamples, confidence_level=level, method="percentile",
        random_state=np.random.default_rng(seed), batch=1000,
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def describe(values: ArrayLike, higher_is_better: bool, seed: int = 0) -> dict[str, float]:
    """Compute mean, standard deviation (ddof 0), median, tail quantile and interval of the mean.

    Returns:
        ``mean``, ``sd``, ``median``, ``worst30`` (the 30th percentile if higher is better, the
        70th otherwise), ``low`` and ``high`` (95 percent, :func:`bootstrap_interval`).

    >>> round(describe([0.6, 0.7, 0.8, np.nan], higher_is_better=True)["worst30"], 2)
    0.66
    """
    sample = drop_nan(values)
    names = ("mean", "sd", "median", "worst30", "low", "high")
    if not sample.size:
        return dict.fromkeys(names, np.nan)
    worst = np.quantile(sample, 0.3 if higher_is_better else 0.7)
    interval = bootstrap_interval(sample, seed)
    statistics = (sample.mean(), sample.std(), np.median(sample), worst, *interval)
    return dict(zip(names, map(float, statistics), strict=True))


def wilcoxon_p_value(values: ArrayLike, reference: ArrayLike) -> float:
    """Compute the two-sided p-value of Wilcoxon's signed-rank test of paired scores.

    Cases that are NaN in either are left out; p is 1 if no two scores differ, NaN without cases.
    """
    differences = drop_nan(np.asarray(values, np.float64) - np.asarray(reference, np.float64))
    if not differences.size:
        return np.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def adjust_holm(p: ArrayLike) -> Values:
    """Adjust p-values for multiple testing (Holm, Scand. J. Statistics 1979); NaN stays NaN.

    In ascending order, the k-th of m becomes the maximum of (m - j) p_j over j <= k, counted from
    0, and at most 1.

    >>> adjust_holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    values = np.array(p, np.float64)
    order = np.argsort(values)[: drop_nan(values).size]  # NaN sorts last
    steps = (len(order) - np.arange(len(order))) * values[order]
    values[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return values


def count_wins(scores: Mapping[str, ArrayLike], higher_is_better: bool) -> dict[str, int]:
    """Count the other methods each method beats: rank-sum test, p < 0.05, in its favour."""
    sign = 1 if higher_is_better else -1
    samples = {method: sign * drop_nan(values) for method, values in scores.items()}

    def is_better(sample: Values, opponent: Values) -> bool:
        if not (sample.size and opponent.size):
            return bool(sample.size > opponent.size)
        test = stats.ranksums(sample, opponent)
        return bool(test.statistic > 0 and test.pvalue < SIGNIFICANCE_LEVEL)

    return {
        method: sum(
            is_better(sample, samples[opponent]) for opponent in samples if opponent != method
        )
        for method, sample in samples.items()
    }


def compute_metric_scores(
    scores: Mapping[str, ArrayLike], higher_is_better: bool
) -> dict[str, float]:
    """Compute Learn2Reg's score of each method in one metric, 0.1 for the fewest wins to 1.

    Scores are equally spaced over the ranks by :func:`count_wins`; ties share their mean rank.  A
    method without the metric has 0.1.
    """
    wins = count_wins(scores, higher_is_better)
    ranks = stats.rankdata(list(wins.values())) - 1  # ties share their mean
    step = (MAX_SCORE - MIN_SCORE) / max(len(wins) - 1, 1)
    return {
        method: float(MIN_SCORE + step * rank) if drop_nan(scores[method]).size else MIN_SCORE
        for method, rank in zip(wins, ranks, strict=True)
    }


def compute_rank_scores(by_metric: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Compute Learn2Reg's overall score: the geometric mean of the scores in all metrics.

    These are results of :func:`compute_metric_scores`, all of the same methods.
    """
    return {
        method: float(stats.gmean([scores[method] for scores in by_metric]))
        for method in by_metric[0]
    }


def select_hardest(initial: ArrayLike, share: float = 0.3) -> NDArray[np.bool_]:
    """Select the ``share`` of scores that were lowest before registration (for Dice30).

    Ties with the last selected score are included, NaN is not.
    """
    values = np.asarray(initial, np.float64)
    sample = drop_nan(values)
    return values <= np.quantile(sample, share) if sample.size else values < 0
