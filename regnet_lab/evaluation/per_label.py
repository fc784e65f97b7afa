"""Compute scores by anatomical structure or region from the per-label tables of evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from regnet_lab.errors import UserError
from regnet_lab.evaluation.comparison import check_settings
from regnet_lab.evaluation.results import Evaluation, EvaluationSource, read_evaluations
from regnet_lab.metrics.tables import IDENTITY, LABEL_KEYS

LabelGroups = Mapping[str, Sequence[int]]


def read_label_scores(sources: Sequence[EvaluationSource], metric: str = "dice") -> pd.DataFrame:
    """Read evaluations and join their per-label tables (:func:`collect_label_scores`)."""
    return collect_label_scores(read_evaluations(sources), metric)


def collect_label_scores(evaluations: Sequence[Evaluation], metric: str = "dice") -> pd.DataFrame:
    """Join the per-label tables of evaluations with distinct method names.

    There is a row (``case``, ``method``, ``label``, ``score``) for each value; of ``identity`` the
    first row of a case counts.
    """
    check_settings(evaluations)
    frames = [_select_metric(e, metric) for e in evaluations]
    for evaluation, frame in zip(evaluations, frames, strict=True):
        if set(frame["case"]) != set(frames[0]["case"]):
            raise UserError(
                f"{evaluation.folder} and {evaluations[0].folder} have different cases: compare "
                "evaluations of the same split."
            )
    return pd.concat(frames).drop_duplicates(LABEL_KEYS).reset_index(drop=True)


def _select_metric(evaluation: Evaluation, metric: str) -> pd.DataFrame:
    if evaluation.labels.empty:
        raise UserError(f"{evaluation.folder}: there is no labels.csv; evaluate data with labels.")
    if missing := [name for name in (*LABEL_KEYS, metric) if name not in evaluation.labels]:
        raise UserError(
            f"{evaluation.folder / 'labels.csv'}: has no column '{missing[0]}'; it has "
            f"{', '.join(evaluation.labels)}."
        )
    return evaluation.labels[[*LABEL_KEYS, metric]].rename(columns={metric: "score"})


def read_label_groups(path: str | Path) -> dict[str, list[int]]:
    """Read groups ``key: {name: frontal, labels: [1003, 1012]}`` of labels by name, else key."""
    try:
        groups = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a YAML file of label groups.") from error
    if not isinstance(groups, dict) or not all(map(_is_group, groups.values())):
        raise UserError(
            f"{path}: each entry must be a group, such as "
            "'1: {name: frontal, labels: [1003, 1012]}'."
        )
    return {str(group.get("name", key)): group["labels"] for key, group in groups.items()}


def _is_group(group: object) -> bool:
    labels = group.get("labels") if isinstance(group, dict) else None
    return isinstance(labels, list) and all(isinstance(label, int) for label in labels)


def average_by_structure(table: pd.DataFrame, groups: LabelGroups | None = None) -> pd.DataFrame:
    """Average the scores of each case over the labels of each group; undefined ones are left out.

    Args:
        table: From :func:`collect_label_scores`.
        groups: Labels by name of the group; None: each label is its own structure.

    Returns:
        Columns ``case``, ``method``, ``structure`` and ``score``.
    """
    table = table.dropna(subset="score")
    if groups is None:
        named = table.assign(structure=table["label"].astype(str))
        return named.sort_values("label", kind="stable").drop(columns="label")
    parts = {name: table[table["label"].isin(labels)] for name, labels in groups.items()}
    if not any(map(len, parts.values())):
        raise UserError("groups: none of their labels was scored; choose the groups of this data.")
    named = [part.assign(structure=name) for name, part in parts.items()]
    keys = ["structure", "method", "case"]
    return pd.concat(named).groupby(keys, sort=False)["score"].mean().reset_index()


def compute_structure_statistics(table: pd.DataFrame) -> pd.DataFrame:
    """Compute ``cases``, ``mean``, ``std`` (ddof 0) and ``median`` of each structure and method.

    Structures are in the order of the table, identity is the first method.
    """
    scores = table.groupby(["structure", "method"], sort=False)["score"]
    statistics = scores.agg(cases="count", mean="mean", median="median")
    statistics.insert(2, "std", scores.std(ddof=0))
    index = pd.MultiIndex.from_product(
        [table["structure"].unique(), list_methods(table)], names=statistics.index.names
    )
    return statistics.reindex(index.intersection(statistics.index, sort=False))


def list_methods(table: pd.DataFrame) -> list[str]:
    """Return the methods in the order of the table, identity first."""
    return sorted(table["method"].unique(), key=lambda method: method != IDENTITY)
