"""Scores of every structure or region, by method, from the tables of evaluation folders."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from regnet_lab.errors import UserError
from regnet_lab.metrics.tables import IDENTITY

COLUMNS = ["case", "method", "label"]
GROUP = re.compile(r"^(?P<key>[^\s:#]+):(?P<labels>[^#]*)(?:#(?P<name>.*))?$")

Groups = Mapping[str, Sequence[int]]


def scores(folders: Sequence[str | Path], metric: str = "dice") -> pd.DataFrame:
    """One row (``case``, ``method``, ``label``, ``score``) for each value in the folders' tables.

    Of ``identity`` the first row of a case counts, other methods of the same name in several
    folders are told apart.

    Raises:
        UserError: A folder has no such table or metric, or the folders judge different cases.
    """
    frames = {str(folder): read(Path(folder), metric) for folder in folders}
    tell_apart(frames)
    first, *others = frames.items()
    for folder, frame in others:
        if set(frame["case"]) != set(first[1]["case"]):
            raise UserError(
                f"{folder} and {first[0]} judge different cases: compare like with like."
            )
    return pd.concat(frames.values()).drop_duplicates(COLUMNS).reset_index(drop=True)


def tell_apart(frames: Mapping[str, pd.DataFrame]) -> None:
    """Add its folder to a method's name in tables of several folders, unless it is ``identity`` or
    only one of them has it.
    """
    names = Counter(name for frame in frames.values() for name in frame["method"].unique())
    shared = {name for name in names if names[name] > 1 and name != IDENTITY}
    for folder, frame in frames.items():
        frame["method"] = [f"{m} ({folder})" if m in shared else m for m in frame["method"]]


def read(folder: Path, metric: str) -> pd.DataFrame:
    """A folder's values of a metric by label.

    Raises:
        UserError: It has none.
    """
    path = folder / "labels.csv"
    if not path.is_file():
        raise UserError(f"{folder}: there is no labels.csv; give folders that evaluate.py wrote.")
    table = pd.read_csv(path)
    if missing := [name for name in (*COLUMNS, metric) if name not in table]:
        raise UserError(f"{path}: has no column '{missing[0]}'; it has {', '.join(table)}.")
    return table[[*COLUMNS, metric]].rename(columns={metric: "score"})


def read_groups(path: str | Path) -> dict[str, list[int]]:
    """Groups of labels of a YAML, ``key: [label, ...] # name``, by name, or key if there is none.

    Raises:
        UserError: It is missing, or no mapping of lists of whole numbers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        groups = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a YAML of label groups.") from error
    lists = groups.values() if isinstance(groups, dict) else [None]
    if not all(isinstance(g, list) and all(isinstance(v, int) for v in g) for g in lists):
        raise UserError(f"{path}: each line must be a group, such as '1: [1003, 1012] # frontal'.")
    found = [match for line in text.splitlines() if (match := GROUP.match(line))]
    names = {match["key"]: (match["name"] or match["key"]).strip() for match in found}
    return {names.get(str(key), str(key)): labels for key, labels in groups.items()}


def by_structure(table: pd.DataFrame, groups: Groups | None = None) -> pd.DataFrame:
    """One row (``case``, ``method``, ``structure``, ``score``) for each label, or for each group:
    the mean of the case's labels in it.  NaN, not defined, is left out.

    Raises:
        UserError: No label is in a group.
    """
    table = table.dropna(subset="score")
    if groups is None:
        named = table.assign(structure=table["label"].astype(str))
        return named.sort_values("label", kind="stable").drop(columns="label")
    parts = {name: table[table["label"].isin(labels)] for name, labels in groups.items()}
    if not any(map(len, parts.values())):
        raise UserError("groups: none of their labels was judged; choose the groups of this data.")
    keys = ["method", "case"]
    means = [
        part.groupby(keys, sort=False)["score"].mean().reset_index().assign(structure=name)
        for name, part in parts.items()
    ]
    return pd.concat(means, ignore_index=True)


def statistics(table: pd.DataFrame) -> pd.DataFrame:
    """``cases``, ``mean``, ``std`` (ddof 0), ``median`` of each structure and method, in the order
    of the table, identity first.
    """
    scores = table.groupby(["structure", "method"], sort=False)["score"]
    counted = scores.agg(cases="count", mean="mean", median="median")
    counted.insert(2, "std", scores.std(ddof=0))
    methods = ordered(table)
    names = pd.MultiIndex.from_product(
        [table["structure"].unique(), methods], names=counted.index.names
    )
    return counted.reindex(names.intersection(counted.index, sort=False))


def ordered(table: pd.DataFrame) -> list[str]:
    """The methods as they come, identity first."""
    return sorted(table["method"].unique(), key=lambda method: method != IDENTITY)
