"""One table of many evaluations over the same cases, with what a reviewer would ask for.

What there is without registration, ``identity``, stands there once; it is no competitor, so it has
neither rank nor p.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from regnet_lab.errors import UserError
from regnet_lab.evaluation.results import Evaluation, Place, collect
from regnet_lab.metrics.statistics import (
    describe,
    hardest,
    holm,
    metric_scores,
    rank_score,
    wilcoxon,
)
from regnet_lab.metrics.tables import COST, IDENTITY

GOOD_WHEN_HIGH = ("dice", "dice30")
RANKED = ("dice", "dice30", "hd95_mm", "hd95_vox", "tre_mm", "tre30_mm", "sdlogj")  # Learn2Reg's
STATISTICS = ("mean", "sd", "median", "worst30", "low", "high", "p")

Scores = dict[str, pd.DataFrame]  # cases x methods, by metric


def _across(frames: Sequence[pd.DataFrame], index: Sequence[str], metric: str) -> pd.DataFrame:
    """One metric of all evaluations, a column for each method; identity's of the first."""
    having = [frame for frame in frames if metric in frame]
    joined = pd.concat(having).drop_duplicates([*index, "method"])
    order = joined["method"].unique()
    return joined.pivot(index=list(index), columns="method", values=metric)[order]


def scores(evaluations: Sequence[Evaluation]) -> Scores:
    """Every number of every case and method, and Learn2Reg's ``dice30``: Dice of those cases'
    labels, (case, label), that were lowest before registration.
    """
    frames = [e.cases for e in evaluations]
    metrics = dict.fromkeys(str(m) for f in frames for m in f.select_dtypes("number"))
    table = {metric: _across(frames, ["case"], metric) for metric in metrics}
    if any("dice" in e.labels for e in evaluations):
        dice = _across([e.labels for e in evaluations], ["case", "label"], "dice")
        if IDENTITY in dice:
            table["dice30"] = dice[hardest(dice[IDENTITY])]
    return table


def ranks(table: Scores, methods: Sequence[str]) -> dict[str, float]:
    """The challenge's score of every method; NaN for a single one."""
    scored = [
        metric_scores({m: table[metric].get(m, []) for m in methods}, metric in GOOD_WHEN_HIGH)
        for metric in RANKED
        if metric in table
    ]
    return rank_score(scored) if scored and len(methods) > 1 else dict.fromkeys(methods, np.nan)


def best(table: Scores, methods: Sequence[str]) -> str | None:
    """The method of the best mean in the first of the challenge's metrics that there is."""
    for metric in (m for m in RANKED if m in table):
        mean = table[metric].reindex(columns=list(methods)).mean().dropna()
        if len(mean):
            return str(mean.idxmax() if metric in GOOD_WHEN_HIGH else mean.idxmin())
    return None


def judged(
    columns: pd.DataFrame, reference: str | None, high_is_good: bool, seed: int = 0
) -> pd.DataFrame:
    """``STATISTICS`` of one metric, a row for each method; p against the reference, after Holm."""
    frame = pd.DataFrame({m: describe(columns[m], high_is_good, seed) for m in columns}).T
    rivals = [m for m in columns if m not in (reference, IDENTITY)]
    frame["p"] = np.nan
    if reference in columns and rivals:
        frame.loc[rivals, "p"] = holm([wilcoxon(columns[m], columns[reference]) for m in rivals])
    return frame[list(STATISTICS)]


def costs(evaluations: Sequence[Evaluation], table: Scores) -> pd.DataFrame:
    """Mean ``seconds`` and ``peak_mb`` of each method that was timed, its parameters and device."""
    frame = pd.DataFrame({name: table[name].mean() for name in COST if name in table})
    about: dict[str, Mapping[str, Any]] = {
        e.about["method"]: e.about for e in evaluations if e.about.get("method")
    }
    for key in ("parameters", "device"):
        frame[key] = pd.Series({m: about.get(m, {}).get(key) for m in frame.index}, dtype=object)
    return frame


def board(
    evaluations: Sequence[Evaluation], reference: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """The leaderboard of evaluations that :func:`regnet_lab.evaluation.results.collect` gives."""
    table = scores(evaluations)
    methods = [m for e in evaluations for m in e.methods]
    if reference not in (None, *methods):
        raise UserError(f"reference={reference} is not one of {', '.join(methods)}.")
    chosen = reference or best(table, methods)
    order = [m for m in RANKED if m in table] + [m for m in table if m not in (*RANKED, *COST)]
    still = [IDENTITY] if any(IDENTITY in columns for columns in table.values()) else []
    parts = [pd.DataFrame({"rank": ranks(table, methods)}, index=pd.Index([*still, *methods]))]
    for metric in order:
        found = judged(table[metric], chosen, metric in GOOD_WHEN_HIGH, seed)
        parts.append(found.add_prefix(f"{metric}_"))
    result = pd.concat([*parts, costs(evaluations, table)], axis=1)
    result.insert(0, "cases", evaluations[0].cases["case"].nunique())
    result = result.rename_axis("method").sort_values("rank", ascending=False, kind="stable")
    result = result.loc[sorted(result.index, key=lambda method: method != IDENTITY)]
    result.attrs["reference"] = chosen
    return result


def leaderboard(
    folders: Sequence[Place],
    reference: str | None = None,
    common: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Every method of every folder, identity first, then by rank.

    Args:
        folders: Evaluations, or what they lie in; ``name=folder`` names the method.
        reference: Method with which the others are compared; none: the best.
        common: Compare the cases that all have judged, where some have judged more.
        seed: Of the bootstrap.

    Returns:
        Indexed by method: ``cases``, ``rank``, ``<metric>_<statistic>`` for ``STATISTICS``,
        ``seconds``, ``peak_mb``, ``parameters``, ``device``; ``attrs["reference"]``.

    Raises:
        UserError: The evaluations cannot be compared, or there is no such reference.
    """
    return board(collect(folders, common), reference, seed)
