"""Read the folders that ``evaluate.py`` writes.

An evaluation is a folder with ``cases.csv``, ``labels.csv`` where there are labels, ``about.json``,
``summary.json`` and ``evaluation_config.yaml``.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from regnet_lab.config.run_dir import read_run_config
from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import IDENTITY, LABEL_KEYS

CONFIG_FILE = "evaluation_config.yaml"

EvaluationSource = str | Path  # an evaluation, a folder above some, or "name=folder"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results in one evaluation folder."""

    folder: Path
    cases: pd.DataFrame  # a row for each case and method
    labels: pd.DataFrame  # a row for each case, method and label; empty where there are no labels
    run_info: Mapping[str, Any]  # content of about.json; empty where there is none
    name: str | None = None  # that the user chose for the method

    @property
    def methods(self) -> list[str]:
        """Names of the evaluated methods, without identity."""
        return [m for m in self.cases["method"].unique() if m != IDENTITY]

    @property
    def origin(self) -> Path:
        """The evaluated run as ``about.json`` names it, or else the folder of the evaluation."""
        return Path(self.run_info.get("run") or self.folder).resolve()

    @property
    def run(self) -> Path | None:
        """Directory of the evaluated run; None if there is no run or it is gone."""
        candidates = [*self.folder.resolve().parents, self.origin]
        return next((path for path in candidates if (path / "config.yaml").is_file()), None)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Configuration of the evaluation; empty where it was not saved."""
        saved = (self.folder / CONFIG_FILE).is_file()
        return read_run_config(self.folder, CONFIG_FILE) if saved else {}

    def get_display_name(self, method: str) -> str:
        """Return the name that the user chose for a method, or else its own."""
        if not self.name:
            return method
        return f"{self.name} {method}" if len(self.methods) > 1 else self.name

    def rename_methods(self, names: dict[str, str]) -> "Evaluation":
        """Return a copy with other names for its methods."""
        cases, labels = (
            frame.assign(method=frame["method"].replace(names)) if len(frame) else frame
            for frame in (self.cases, self.labels)
        )
        method = self.run_info.get("method", "")
        renamed = {"method": names[method]} if method in names else {}
        return replace(self, cases=cases, labels=labels, run_info={**self.run_info, **renamed})


def read_evaluation(folder: Path, name: str | None = None) -> Evaluation:
    """Read an evaluation folder, dropping repeated cases."""
    labels_csv, run_info = folder / "labels.csv", folder / "about.json"
    read_table = partial(pd.read_csv, dtype={"case": str, "method": str})
    try:
        cases = read_table(folder / "cases.csv").drop_duplicates(["method", "case"])
        labels = read_table(labels_csv) if labels_csv.is_file() else pd.DataFrame()
        labels = labels.drop_duplicates(LABEL_KEYS) if len(labels) else pd.DataFrame()
        about = json.loads(run_info.read_text("utf-8")) if run_info.is_file() else {}
        return Evaluation(folder, cases, labels, about, name)
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{folder}: cannot be read as an evaluation ({error}); run evaluate.py again."
        ) from error


def read_summary(folder: Path) -> dict[str, Any]:
    """Read ``summary.json``, the numbers of each method and of ``cases``; empty if missing."""
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def find_evaluations(source: EvaluationSource) -> list[Evaluation]:
    """Read the evaluation in a folder, or all below it."""
    name, _, path = ("", "", source) if Path(source).exists() else str(source).rpartition("=")
    top = Path(path)
    is_evaluation = (top / "cases.csv").is_file()
    folders = [top] if is_evaluation else sorted(file.parent for file in top.rglob("cases.csv"))
    if not folders:
        raise UserError(f"{source}: holds no evaluation (cases.csv); run evaluate.py first.")
    return [read_evaluation(folder, name or None) for folder in folders]


def read_evaluations(sources: Sequence[EvaluationSource]) -> list[Evaluation]:
    """Read all evaluations of all sources, each once, no two methods under one name."""
    if not sources:
        raise UserError("Name the folders of the evaluations to compare.")
    by_folder = {e.folder.resolve(): e for source in sources for e in find_evaluations(source)}
    evaluations = list(by_folder.values())
    display_names = choose_display_names(evaluations)
    return [e.rename_methods(n) for e, n in zip(evaluations, display_names, strict=True)]


def choose_display_names(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """Return the display name of each method, for each evaluation.

    It is the name that the user chose or the method's own.  Where several evaluations share one,
    the parts in which the paths of their runs differ are appended; for evaluations of one run,
    those in which their own paths differ.
    """
    own_names = [{m: e.get_display_name(m) for m in e.methods} for e in evaluations]
    counts = Counter(name for names in own_names for name in names.values())
    shared = {name for name, count in counts.items() if count > 1}
    rivals = [e for e, n in zip(evaluations, own_names, strict=True) if shared & set(n.values())]
    by_run = len({e.origin for e in rivals}) == len(rivals)
    parts = {e: (e.origin if by_run else e.folder.resolve()).parts for e in evaluations}
    common_parts = set.intersection(*(set(parts[e]) for e in rivals)) if rivals else set()

    def append_path(e: Evaluation, name: str) -> str:
        path = "/".join(part for part in parts[e] if part not in common_parts)
        return f"{name} ({path})" if name in shared else name

    return [
        {method: append_path(e, name) for method, name in names.items()}
        for e, names in zip(evaluations, own_names, strict=True)
    ]
