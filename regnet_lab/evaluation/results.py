"""The folders that ``evaluate.py`` has written, read again to be compared.

An evaluation is a folder with ``cases.csv``, ``labels.csv`` where there are labels, and
``about.json``.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import IDENTITY

log = logging.getLogger(__name__)

CLOSE = 1e-4  # difference of two scores without registration that are the same

Place = str | Path


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One folder.

    Args:
        folder: Where it lies.
        cases: One row for each case and method.
        labels: One row for each case, method and label; empty where there are none.
        about: What ``about.json`` says; empty where there is none.
        name: What the user calls the method.
    """

    folder: Path
    cases: pd.DataFrame
    labels: pd.DataFrame
    about: Mapping[str, Any]
    name: str | None = None

    @property
    def methods(self) -> list[str]:
        """Those judged here but identity."""
        return [m for m in self.cases["method"].unique() if m != IDENTITY]

    def called(self, method: str) -> str:
        """What the user calls a method, or else its own name."""
        several = f"{self.name} {method}" if len(self.methods) > 1 else self.name
        return several if self.name else method  # type: ignore[return-value]

    @property
    def origin(self) -> Path:
        """The run that was judged, or where the evaluation lies."""
        return Path(self.about.get("run") or self.folder).resolve()

    def renamed(self, titles: Mapping[str, str]) -> "Evaluation":
        """The same with other names for its methods."""
        cases, labels = (
            frame.assign(method=frame["method"].replace(dict(titles))) if len(frame) else frame
            for frame in (self.cases, self.labels)
        )
        method = self.about.get("method")
        about = {**self.about, "method": titles.get(method, method)}  # type: ignore[arg-type]
        return replace(self, cases=cases, labels=labels, about=about)


def read(folder: Path, name: str | None = None) -> Evaluation:
    """The evaluation in a folder; a case that stands there twice counts once.

    Raises:
        UserError: A file is missing or damaged.
    """
    labels, about = folder / "labels.csv", folder / "about.json"
    text = {"case": str, "method": str}
    try:
        cases = pd.read_csv(folder / "cases.csv", dtype=text)
        by_label = pd.read_csv(labels, dtype=text) if labels.is_file() else pd.DataFrame()
        return Evaluation(
            folder,
            cases.drop_duplicates(["method", "case"]),
            by_label.drop_duplicates(["method", "case", "label"]) if len(by_label) else by_label,
            json.loads(about.read_text("utf-8")) if about.is_file() else {},
            name,
        )
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{folder}: is no evaluation ({error}); evaluate it again.") from error


def find(place: Place) -> list[Evaluation]:
    """The evaluation in a folder, or those below it; ``name=folder`` names its method.

    Raises:
        UserError: There is none.
    """
    name, _, path = ("", "", place) if Path(place).exists() else str(place).rpartition("=")
    folder = Path(path)
    own = (folder / "cases.csv").is_file()
    found = [folder] if own else sorted(file.parent for file in folder.rglob("cases.csv"))
    if not found:
        raise UserError(f"{place}: holds no evaluation (cases.csv); run evaluate.py first.")
    return [read(inner, name or None) for inner in found]


def titles(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """What the methods of each evaluation are called in a table of all.

    By the name the user gave or by their own; those that share a name are told apart by the parts
    of their runs' folders, or else their own, that differ.
    """
    own = [{m: e.called(m) for m in e.methods} for e in evaluations]
    shared = {n for n, count in Counter(n for o in own for n in o.values()).items() if count > 1}
    rivals = [e for e, o in zip(evaluations, own, strict=True) if shared & set(o.values())]
    by_run = len({e.origin for e in rivals}) == len(rivals)
    parts = {e: (e.origin if by_run else e.folder.resolve()).parts for e in evaluations}
    alike = set.intersection(*(set(parts[e]) for e in rivals)) if rivals else set()

    def title(e: Evaluation, name: str) -> str:
        where = "/".join(part for part in parts[e] if part not in alike)
        return f"{name} ({where})" if name in shared else name

    return [
        {method: title(e, name) for method, name in o.items()}
        for e, o in zip(evaluations, own, strict=True)
    ]


def same_cases(evaluations: Sequence[Evaluation], common: bool) -> list[Evaluation]:
    """The evaluations, of the cases that all have.

    Args:
        evaluations: Those to compare.
        common: Be content, with a warning, where some have more than others.

    Raises:
        UserError: Some have more than others, or nothing is common.
    """
    sets = [set(e.cases["case"]) for e in evaluations]
    shared = set.intersection(*sets)
    odd = max(range(len(sets)), key=lambda i: len(sets[i] ^ sets[0]))
    if sets[odd] != sets[0]:
        said = (
            f"{evaluations[0].folder} and {evaluations[odd].folder} have judged different cases "
            f"({len(sets[0])} and {len(sets[odd])}, {len(sets[0] & sets[odd])} in common)"
        )
        if not (common and shared):
            raise UserError(f"{said}: judge the same split, or compare what is common (--common).")
        log.warning("%s: compared are the %d that all have.", said, len(shared))

    def of_shared(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["case"].isin(shared)] if len(frame) else frame

    return [replace(e, cases=of_shared(e.cases), labels=of_shared(e.labels)) for e in evaluations]


def check_identity(evaluations: Sequence[Evaluation]) -> None:
    """Compare what was found without registration.

    Raises:
        UserError: It differs: other data, labels, grid or definitions of the metrics.
    """
    found = [e.cases[e.cases["method"] == IDENTITY].set_index("case") for e in evaluations]
    first = found[0].select_dtypes("number") if found else pd.DataFrame()
    for e, other in zip(evaluations, found, strict=True):
        for metric in first.columns.intersection(other.columns):
            mine, theirs = first[metric], other[metric].reindex(first.index)
            if not np.allclose(mine, theirs, rtol=CLOSE, atol=CLOSE, equal_nan=True):
                case = (mine - theirs).abs().idxmax()
                raise UserError(
                    f"{e.folder}: {metric} of {case} without registration is {theirs[case]:.5g}, "
                    f"but {mine[case]:.5g} in {evaluations[0].folder}: judge all on the same data, "
                    "grid and labels."
                )


def collect(places: Sequence[Place], common: bool = False) -> list[Evaluation]:
    """The evaluations in all places, each once, of the same cases, their methods named apart.

    Raises:
        UserError: There is none, or they cannot be compared.
    """
    if not places:
        raise UserError("Name the folders of the evaluations to compare.")
    found = {e.folder.resolve(): e for place in places for e in find(place)}
    return compared(told_apart(list(found.values())), common)


def told_apart(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations, no two methods of one name (:func:`titles`)."""
    return [e.renamed(t) for e, t in zip(evaluations, titles(evaluations), strict=True)]


def compared(evaluations: Sequence[Evaluation], common: bool = False) -> list[Evaluation]:
    """The evaluations, of the same cases (:func:`same_cases`).

    Raises:
        UserError: They cannot be compared.
    """
    alike = same_cases(evaluations, common)
    check_identity([e for e in alike if IDENTITY in set(e.cases["method"])])
    return alike
