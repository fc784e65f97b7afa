"""What may be said of a method from its scores over cases: moments, intervals, tests, ranks.

Scores are one number for each case; NaN means "not defined for this case" and is left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Values = NDArray[np.float64]

LOWEST, HIGHEST = 0.1, 1.0  # score of the last and of the first in a metric
LEVEL = 0.05  # below which a difference counts


def known(values: ArrayLike) -> Values:
    """The numbers that are not NaN."""
    array = np.asarray(values, np.float64)
    return array[~np.isnan(array)]


def interval(
    values: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Bootstrap interval of the mean: percentiles of the means of ``resamples`` draws of as many
    cases with replacement (Efron, Annals of Statistics 1979); NaN for fewer than two cases.
    """
    sample = known(values)
    if sample.size < 2:
        return np.nan, np.nan
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=resamples, confidence_level=level, method="percentile",
        random_state=np.random.default_rng(seed), batch=1000,
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def describe(values: ArrayLike, high_is_good: bool, seed: int = 0) -> dict[str, float]:
    """Mean, standard deviation (ddof 0), median, interval, and where the worst 30 percent begin.

    Returns:
        ``mean``, ``sd``, ``median``, ``worst30`` (the 30th percentile where high is good, the 70th
        elsewhere), ``low`` and ``high`` (95 percent of the mean, :func:`interval`).
    """
    sample = known(values)
    names = ("mean", "sd", "median", "worst30", "low", "high")
    if not sample.size:
        return dict.fromkeys(names, np.nan)
    worst = np.quantile(sample, 0.3 if high_is_good else 0.7)
    found = (sample.mean(), sample.std(), np.median(sample), worst, *interval(sample, seed))
    return dict(zip(names, map(float, found), strict=True))


def wilcoxon(values: ArrayLike, reference: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of the differences case by case.

    Cases that either lacks are left out; p is 1 where no two scores differ, NaN without cases.
    """
    differences = known(np.asarray(values, np.float64) - np.asarray(reference, np.float64))
    if not differences.size:
        return np.nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p: ArrayLike) -> Values:
    """P-values adjusted for their number m (Holm, Scand. J. Statistics 1979), NaN staying NaN.

    In rising order, the k-th of 0, 1, ... becomes the greatest of (m - j) p_j over j <= k, and
    at most 1.
    """
    values = np.array(p, np.float64)
    order = np.argsort(values)[: known(values).size]  # NaN sorts last
    steps = (len(order) - np.arange(len(order))) * values[order]
    values[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return values


def wins(scores: Mapping[str, ArrayLike], high_is_good: bool) -> dict[str, int]:
    """How many others each method beats: Wilcoxon's rank-sum test, p < 0.05, in its favour."""
    sign = 1 if high_is_good else -1
    samples = {method: sign * known(values) for method, values in scores.items()}

    def beats(one: Values, other: Values) -> bool:
        if not (one.size and other.size):
            return bool(one.size > other.size)
        found = stats.ranksums(one, other)
        return bool(found.statistic > 0 and found.pvalue < LEVEL)

    return {
        name: sum(beats(mine, other) for rival, other in samples.items() if rival != name)
        for name, mine in samples.items()
    }


def metric_scores(scores: Mapping[str, ArrayLike], high_is_good: bool) -> dict[str, float]:
    """Learn2Reg's score in one metric: 0.1 for the fewest :func:`wins` to 1 for the most.

    Equally spaced over the order of the methods, equals sharing the mean of their places; a method
    without the metric has 0.1.
    """
    counts = wins(scores, high_is_good)
    place = stats.rankdata(list(counts.values())) - 1  # equals share their mean
    span = (HIGHEST - LOWEST) / max(len(counts) - 1, 1)
    return {
        name: float(LOWEST + span * at) if known(scores[name]).size else LOWEST
        for name, at in zip(counts, place, strict=True)
    }


def rank_score(by_metric: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Learn2Reg's overall score: the geometric mean over metrics of :func:`metric_scores`."""
    return {
        name: float(stats.gmean([scores[name] for scores in by_metric])) for name in by_metric[0]
    }


def hardest(initial: ArrayLike, share: float = 0.3) -> NDArray[np.bool_]:
    """Which scores belong to the ``share`` that was lowest before registration (Dice30); equals
    of the last one belong to it, NaN does not.
    """
    values = np.asarray(initial, np.float64)
    return values <= np.quantile(known(values), share) if known(values).size else values < 0
