"""Several evaluations as one report: sources by targets, or methods, or a curve."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from regnet_lab.metrics import tables
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import iterations
from regnet_lab.visualization.curves import DPI, lines
from regnet_lab.visualization.iterations import SCORES, step_figure, witness

JOB = "job.json"
CURVES = {"steps": ("model", step_figure), "energy": ("method", iterations.figure)}


def note(folder: Path, job: dict[str, Any]) -> None:
    """Write down what a job judged: ``run``, ``model``, ``data``, ``overrides``, ``folder`` and, if
    it failed, ``error``.
    """
    write_text(folder / JOB, json.dumps(job, indent=2))


def noted(sweep: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep that have ended, in order, each with its ``source`` and ``target``.

    A source is called by the path of its run below the folder common to all runs, or by its model,
    and by what else differs between jobs.
    """
    paths = sorted(sweep.glob(f"*/{JOB}"), key=lambda path: (len(path.parent.name), path))
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    parents = [os.path.dirname(os.path.abspath(job["run"])) for job in jobs if job["run"]]
    common = os.path.commonpath(parents) if parents else ""
    everywhere = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()

    def source(job: dict[str, Any]) -> str:
        name = os.path.relpath(job["run"], common) if job["run"] else job["model"]
        named = everywhere | {f"{key}={job[key]}" for key in ("run", "model", "data")}
        return " ".join([name, *(word for word in job["overrides"] if word not in named)])

    return [job | {"source": source(job), "target": job["data"]} for job in jobs]


def setting(run: str | None, key: str) -> Any:
    """A value of a run's configuration; None where there is none."""
    path = Path(run or "") / "config.yaml"
    return OmegaConf.select(OmegaConf.load(path), key) if path.is_file() else None


def judged(job: dict[str, Any], against: str | None) -> list[dict[str, Any]]:
    """A row for each method a job judged, none if it failed."""
    path = Path(job["folder"]) / "summary.json"
    if job["error"] or not path.is_file():
        return []
    summary = json.loads(path.read_text(encoding="utf-8"))
    cases = summary.pop("cases")
    methods = list(summary)
    rows = []
    for method, numbers in summary.items():
        known = method == tables.IDENTITY
        several = len(methods) - (tables.IDENTITY in methods) > 1
        bare = job["source"].isdigit()  # as the jobs of a sweep are
        own = f"{job['source']} {method}" if several or bare else job["source"]
        rows.append(
            {"source": method if known else own, "target": job["target"], "method": method}
            | ({against: None if known else setting(job["run"], against)} if against else {})
            | {"cases": cases}
            | {f"{k}_{part}": v[part] for k, v in numbers.items() for part in ("mean", "std")}
        )
    return rows


def outcomes(jobs: Sequence[dict[str, Any]], against: str | None = None) -> pd.DataFrame:
    """A row for each source and target: ``method``, ``cases`` and the numbers of the summary.

    Identity is one source for all, and the first; with ``against`` there is a column of that name.
    """
    rows = [row for job in jobs for row in judged(job, against)]
    rows.sort(key=lambda row: row["source"] != tables.IDENTITY)
    frame = pd.DataFrame(rows, columns=None if rows else ["source", "target", "method"])
    return frame.drop_duplicates(["source", "target"])


def matrix(frame: pd.DataFrame, number: str) -> pd.DataFrame:
    """A number by source (rows) and target (columns), both in the order of the jobs."""
    order = [frame[name].drop_duplicates() for name in ("source", "target")]
    return frame.pivot(index="source", columns="target", values=number).reindex(
        index=order[0], columns=order[1]
    )


def heat_map(values: pd.DataFrame, title: str) -> Figure:
    """A matrix in colours, its numbers written on them."""
    rows, columns = values.shape
    figure = Figure(figsize=(3.5 + columns, 1.5 + 0.5 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(values, "viridis", aspect="auto"), ax=axes)
    axes.set_xticks(range(columns), values.columns)
    axes.set_yticks(range(rows), values.index)
    axes.set(xlabel="judged on", ylabel="trained as", title=title)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values.to_numpy(float)):
        colour = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour)
    return figure


def markdown_matrix(frame: pd.DataFrame, score: str) -> str:
    """Mean ± standard deviation of a score, rows sources, columns targets."""
    means, spreads = (matrix(frame, f"{score}_{part}") for part in ("mean", "std"))
    lines_ = [f"| {tables.header(score)}: source \\ target | " + " | ".join(means) + " |"]
    lines_.append("|---" + "|--:" * len(means.columns) + "|")
    for source in means.index:
        pairs = zip(means.loc[source], spreads.loc[source], strict=True)
        cells = ["-" if np.isnan(m) else f"{m:.3f} ± {s:.3f}" for m, s in pairs]
        lines_.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines_) + "\n"


def summarised(frame: pd.DataFrame) -> str:
    """Sources by targets for every score, or for a single target all scores of every source."""
    if frame["target"].nunique() == 1:
        return tables.markdown(frame.set_index("source").drop(columns=["target", "method"]))
    scores = [s for s in (*SCORES, "hd95_mm", "folds_percent") if f"{s}_mean" in frame]
    return "\n".join(markdown_matrix(frame, score) for score in scores)


def curve_figure(frame: pd.DataFrame, against: str) -> Figure:
    """The first score known against a setting of the runs, a line for each method."""
    score = witness(frame, "_mean")
    named = frame.rename(columns={f"{score}_mean": score}).dropna(subset=[against])
    return lines(named[[against, score, "method"]], against, {score: SCORES[score]}, "method")


def joined(jobs: Sequence[dict[str, Any]], name: str, column: str) -> pd.DataFrame | None:
    """The tables ``<name>.csv`` of the jobs below one another, ``column`` naming their source."""
    found = [(job, Path(job["folder"]) / f"{name}.csv") for job in jobs if not job["error"]]
    several = len({job["target"] for job in jobs}) > 1
    parts = [
        pd.read_csv(path).assign(
            **{column: f"{job['source']} on {job['target']}" if several else job["source"]}
        )
        for job, path in found
        if path.is_file()
    ]
    return pd.concat(parts) if parts else None


def gather(sweep: Path, against: str | None = None) -> None:
    """Write the report of the jobs of a sweep that have ended so far.

    ``summary.csv`` and ``summary.md`` always, ``shift.png`` where there are several targets,
    ``curve.csv`` and ``curve.png`` with ``against``, and the curves of energy and of steps of all
    jobs in one where jobs have them.
    """
    jobs = noted(sweep)
    frame = outcomes(jobs, against)
    failed = [
        f"- {j['source']} on {j['target']} failed: {j['error']}\n" for j in jobs if j["error"]
    ]
    text = summarised(frame) if len(frame) else ""
    write_text(sweep / "summary.csv", frame.to_csv(index=False))
    write_text(sweep / "summary.md", "\n".join(filter(None, [text, "".join(failed)])))
    score = witness(frame, "_mean")
    if score and frame["target"].nunique() > 1:
        heat_map(matrix(frame, f"{score}_mean"), SCORES[score]).savefig(sweep / "shift.png")
    if score and against and frame[against].notna().any():
        write_text(sweep / "curve.csv", frame.dropna(subset=[against]).to_csv(index=False))
        curve_figure(frame, against).savefig(sweep / "curve.png")
    for name, (column, figure) in CURVES.items():
        if (table := joined(jobs, name, column)) is not None:
            write_text(sweep / f"{name}.csv", table.to_csv(index=False))
            figure(table).savefig(sweep / f"{name}.png")
