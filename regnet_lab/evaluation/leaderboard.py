"""Compare methods over the same cases: statistics, tests, ranks and costs in one table.

The row ``identity`` (no registration) has neither rank nor p-value.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from regnet_lab.errors import UserError
from regnet_lab.evaluation.comparison import make_comparable
from regnet_lab.evaluation.results import Evaluation, EvaluationSource, read_evaluations
from regnet_lab.metrics import statistics
from regnet_lab.metrics.tables import COST_COLUMNS, IDENTITY

HIGHER_IS_BETTER = ("dice", "dice30")
# Those of the Learn2Reg challenges.
RANKED_METRICS = ("dice", "dice30", "hd95_mm", "hd95_vox", "tre_mm", "tre30_mm", "sdlogj")
STATISTICS = ("mean", "sd", "median", "worst30", "low", "high", "p")

ScoreTables = dict[str, pd.DataFrame]  # cases x methods, by metric


def _pivot_metric(
    frames: Sequence[pd.DataFrame], index: Sequence[str], metric: str
) -> pd.DataFrame:
    """Join one metric of all evaluations, a column per method; identity of the first counts."""
    joined = pd.concat([f for f in frames if metric in f]).drop_duplicates([*index, "method"])
    methods = joined["method"].unique()
    return joined.pivot(index=list(index), columns="method", values=metric)[methods]


def tabulate_scores(evaluations: Sequence[Evaluation]) -> ScoreTables:
    """Join each metric of all evaluations, and add ``dice30`` of Learn2Reg.

    ``dice30`` is the Dice of the 30 % of (case, label) with the lowest Dice before registration.
    """
    frames = [e.cases for e in evaluations]
    metrics = dict.fromkeys(str(m) for f in frames for m in f.select_dtypes("number"))
    tables = {metric: _pivot_metric(frames, ["case"], metric) for metric in metrics}
    if any("dice" in e.labels for e in evaluations):
        dice = _pivot_metric([e.labels for e in evaluations], ["case", "label"], "dice")
        if IDENTITY in dice:
            tables["dice30"] = dice[statistics.select_hardest(dice[IDENTITY])]
    return tables


def rank_methods(tables: ScoreTables, methods: Sequence[str]) -> dict[str, float]:
    """Compute the rank score of Learn2Reg, 0.1 to 1 (best), per method; NaN for a single one."""
    if len(methods) < 2:
        return dict.fromkeys(methods, np.nan)
    by_metric = []
    for metric in (m for m in RANKED_METRICS if m in tables):
        scores = {m: tables[metric].get(m, []) for m in methods}
        by_metric.append(statistics.compute_metric_scores(scores, metric in HIGHER_IS_BETTER))
    if not by_metric:
        return dict.fromkeys(methods, np.nan)
    return statistics.compute_rank_scores(by_metric)


def find_best_method(tables: ScoreTables, methods: Sequence[str]) -> str | None:
    """Return the method with the best mean of the first ranked metric that there is."""
    for metric in (m for m in RANKED_METRICS if m in tables):
        mean = tables[metric].reindex(columns=list(methods)).mean().dropna()
        if len(mean):
            return str(mean.idxmax() if metric in HIGHER_IS_BETTER else mean.idxmin())
    return None


def compute_statistics(
    scores: pd.DataFrame, reference: str | None, higher_is_better: bool, seed: int = 0
) -> pd.DataFrame:
    """Compute ``STATISTICS`` of one metric (cases x methods), a row per method.

    p-values are of Wilcoxon tests against the reference, adjusted after Holm.
    """
    by_method = {m: statistics.describe(scores[m], higher_is_better, seed) for m in scores}
    frame = pd.DataFrame(by_method).T
    compared = [m for m in scores if m not in (reference, IDENTITY)]
    frame["p"] = np.nan
    if reference in scores and compared:
        p_values = [statistics.wilcoxon_p_value(scores[m], scores[reference]) for m in compared]
        frame.loc[compared, "p"] = statistics.adjust_holm(p_values)
    return frame[list(STATISTICS)]


def tabulate_costs(evaluations: Sequence[Evaluation], tables: ScoreTables) -> pd.DataFrame:
    """Return mean ``seconds`` and ``peak_mb``, parameters and device of each timed method."""
    frame = pd.DataFrame({name: tables[name].mean() for name in COST_COLUMNS if name in tables})
    run_infos = {e.run_info["method"]: e.run_info for e in evaluations if "method" in e.run_info}
    for key in ("parameters", "device"):
        values = {m: run_infos.get(m, {}).get(key) for m in frame.index}
        frame[key] = pd.Series(values, dtype=object)
    return frame


def rank_evaluations(
    evaluations: Sequence[Evaluation], reference: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Build the leaderboard of comparable evaluations (see :func:`build_leaderboard`)."""
    tables = tabulate_scores(evaluations)
    methods = [m for e in evaluations for m in e.methods]
    if reference not in (None, *methods):
        raise UserError(f"reference={reference} is not one of {', '.join(methods)}.")
    reference = reference or find_best_method(tables, methods)
    other_metrics = [m for m in tables if m not in (*RANKED_METRICS, *COST_COLUMNS)]
    metrics = [m for m in RANKED_METRICS if m in tables] + other_metrics
    identity = [IDENTITY] if any(IDENTITY in scores for scores in tables.values()) else []
    ranks = rank_methods(tables, methods)
    parts = [pd.DataFrame({"rank": ranks}, index=pd.Index([*identity, *methods]))]
    for metric in metrics:
        columns = compute_statistics(tables[metric], reference, metric in HIGHER_IS_BETTER, seed)
        parts.append(columns.add_prefix(f"{metric}_"))
    leaderboard = pd.concat([*parts, tabulate_costs(evaluations, tables)], axis=1)
    leaderboard.insert(0, "cases", evaluations[0].cases["case"].nunique())
    leaderboard = leaderboard.rename_axis("method").sort_values(
        "rank", ascending=False, kind="stable"
    )
    leaderboard = leaderboard.loc[sorted(leaderboard.index, key=lambda method: method != IDENTITY)]
    leaderboard.attrs["reference"] = reference
    return leaderboard


def build_leaderboard(
    sources: Sequence[EvaluationSource],
    reference: str | None = None,
    common: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Build the table of all methods of all evaluations, identity first, then by rank.

    Args:
        sources: Evaluation folders or folders above them; ``name=folder`` names the method.
        reference: Method with which the others are compared; None: the best.
        common: Compare the common cases where some evaluations have more than others.
        seed: Seed of the bootstrap.

    Returns:
        Indexed by method: ``cases``, ``rank``, ``<metric>_<statistic>`` for ``STATISTICS``,
        ``seconds``, ``peak_mb``, ``parameters``, ``device``; ``attrs["reference"]``.
    """
    return rank_evaluations(make_comparable(read_evaluations(sources), common), reference, seed)
