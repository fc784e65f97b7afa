"""Make evaluations comparable: the same settings, cases and scores without registration."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from regnet_lab.errors import UserError
from regnet_lab.evaluation.results import Evaluation
from regnet_lab.metrics.tables import IDENTITY

log = logging.getLogger(__name__)

IDENTITY_TOLERANCE = 1e-4  # largest difference of identity scores on the same data


def make_comparable(evaluations: Sequence[Evaluation], common: bool = False) -> list[Evaluation]:
    """Restrict evaluations to the same cases.

    Raises:
        UserError: Data set, split, metrics, cases or the scores without registration differ.
    """
    check_settings(evaluations)
    selected = select_common_cases(evaluations, common)
    check_identity_scores([e for e in selected if IDENTITY in set(e.cases["method"])])
    return selected


def check_settings(evaluations: Sequence[Evaluation]) -> None:
    """Check that evaluations of one run or model used the same data set, split and metrics."""
    by_origin: dict[Path, list[Evaluation]] = {}
    for e in evaluations:
        parent = e.folder.resolve().parent
        no_run = parent if parent.name == "evaluation" else e.origin
        by_origin.setdefault(e.origin if e.run_info.get("run") else no_run, []).append(e)
    for origin, group in by_origin.items():
        if len(group) == 1:
            continue
        choices = f"give one of these folders instead: {', '.join(str(e.folder) for e in group)}."
        if len({(e.config.get("data_name"), e.config.get("split")) for e in group}) > 1:
            raise UserError(f"{origin} was evaluated on several data sets or splits; {choices}")
        if len({json.dumps(e.config.get("metrics"), sort_keys=True) for e in group}) > 1:
            raise UserError(
                f"{origin} was evaluated with several choices of metrics=, which are not several "
                f"methods; {choices}"
            )


def select_common_cases(evaluations: Sequence[Evaluation], common: bool) -> list[Evaluation]:
    """Restrict evaluations to the cases that all of them have.

    Raises:
        UserError: Cases differ and ``common`` is not set, or there is no common case.
    """
    sets = [set(e.cases["case"]) for e in evaluations]
    shared = set.intersection(*sets)
    odd = max(range(len(sets)), key=lambda i: len(sets[i] ^ sets[0]))
    if sets[odd] != sets[0]:
        difference = (
            f"{evaluations[0].folder} and {evaluations[odd].folder} have different cases "
            f"({len(sets[0])} and {len(sets[odd])}, {len(sets[0] & sets[odd])} in common)"
        )
        if not (common and shared):
            raise UserError(
                f"{difference}: evaluate the same split, or compare the common cases (--common)."
            )
        log.warning("%s: only the %d cases that all have are compared.", difference, len(shared))

    def select(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["case"].isin(shared)] if len(frame) else frame

    return [replace(e, cases=select(e.cases), labels=select(e.labels)) for e in evaluations]


def check_identity_scores(evaluations: Sequence[Evaluation]) -> None:
    """Check that the scores without registration are the same in all evaluations."""
    tables = [e.cases[e.cases["method"] == IDENTITY].set_index("case") for e in evaluations]
    first = tables[0].select_dtypes("number") if tables else pd.DataFrame()
    tolerances = {"rtol": IDENTITY_TOLERANCE, "atol": IDENTITY_TOLERANCE}
    for e, table in zip(evaluations, tables, strict=True):
        for metric in first.columns.intersection(table.columns):
            expected, actual = first[metric], table[metric].reindex(first.index)
            if not np.allclose(expected, actual, equal_nan=True, **tolerances):
                case = (expected - actual).abs().idxmax()
                raise UserError(
                    f"{e.folder}: {metric} of {case} without registration is {actual[case]:.5g}, "
                    f"but {expected[case]:.5g} in {evaluations[0].folder}: evaluate all on the "
                    "same data, grid and labels with the same metrics."
                )
