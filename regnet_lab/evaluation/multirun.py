"""Report the jobs of ``evaluate.py -m``: sources by targets, methods, or a curve.

A source is what was trained (a run or a model), a target the data set that it was evaluated on.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from regnet_lab.config.run_dir import load_run_config
from regnet_lab.evaluation.results import read_summary
from regnet_lab.metrics import tables
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.visualization import iterations
from regnet_lab.visualization.curves import DPI, plot_metrics
from regnet_lab.visualization.iterations import PRIMARY_METRICS, find_primary_metric

JOB_FILE = "job.json"
CURVE_FIGURES = {
    "iteration_sweep": ("model", iterations.plot_iteration_sweep),
    "energy": ("method", iterations.plot_energy_curves),
}


def write_job(folder: Path, job: dict[str, Any]) -> None:
    """Write the description of a job that has ended into its folder.

    It has ``run``, ``model``, ``data``, ``overrides``, ``folder`` and, if it failed, ``error``.
    """
    write_text(folder / JOB_FILE, json.dumps(job, indent=2))


def read_job_files(sweep: Path) -> dict[Path, dict[str, Any]]:
    """Read what :func:`write_job` wrote, by folder of the job, in the order of the jobs."""
    paths = sorted(sweep.glob(f"*/{JOB_FILE}"), key=lambda path: (len(path.parent.name), path))
    return {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def read_jobs(sweep: Path) -> list[dict[str, Any]]:
    """Read the jobs of a sweep that have ended, each with its ``source`` and ``target``.

    A source is named by the path of its run below the folder common to all runs, or by its model,
    and by the overrides that not all jobs share.
    """
    jobs = list(read_job_files(sweep).values())
    parents = [os.path.dirname(os.path.abspath(job["run"])) for job in jobs if job["run"]]
    common_path = os.path.commonpath(parents) if parents else ""
    shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()

    def name_source(job: dict[str, Any]) -> str:
        name = os.path.relpath(job["run"], common_path) if job["run"] else job["model"]
        omitted = shared | {f"{key}={job[key]}" for key in ("run", "model", "data")}
        return " ".join([name, *(word for word in job["overrides"] if word not in omitted)])

    return [job | {"source": name_source(job), "target": job["data"]} for job in jobs]


def read_run_setting(run: str | None, key: str) -> Any:
    """Read a value of a run's configuration; None if the run or the key is missing."""
    exists = run is not None and (Path(run) / "config.yaml").is_file()
    return OmegaConf.select(load_run_config(run), key) if run and exists else None


def read_job_scores(job: dict[str, Any], x_axis: str | None) -> list[dict[str, Any]]:
    """Read a row for each method that a job evaluated; none if it failed."""
    summary = {} if job["error"] else read_summary(Path(job["folder"]))
    if not summary:
        return []
    num_cases = summary.pop("cases")
    several = len(set(summary) - {tables.IDENTITY}) > 1
    rows = []
    for method, numbers in summary.items():
        is_identity = method == tables.IDENTITY
        is_shared = several or job["source"].isdigit()  # a number is a job of a sweep
        name = f"{job['source']} {method}" if is_shared else job["source"]
        row = {"source": method if is_identity else name, "target": job["target"]}
        row["method"] = method
        if x_axis:
            row[x_axis] = None if is_identity else read_run_setting(job["run"], x_axis)
        row["cases"] = num_cases
        row |= {f"{k}_{part}": v[part] for k, v in numbers.items() for part in ("mean", "std")}
        rows.append(row)
    return rows


def tabulate_jobs(jobs: Sequence[dict[str, Any]], x_axis: str | None = None) -> pd.DataFrame:
    """Build a table with a row for each source and target, identity first.

    Its columns are ``source``, ``target``, ``method``, with ``x_axis`` one of that name, ``cases``
    and mean and standard deviation of each metric.
    """
    rows = [row for job in jobs for row in read_job_scores(job, x_axis)]
    rows.sort(key=lambda row: row["source"] != tables.IDENTITY)
    frame = pd.DataFrame(rows, columns=None if rows else ["source", "target", "method"])
    return frame.drop_duplicates(["source", "target"])


def pivot_sources_targets(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Pivot a column to sources (rows) by targets (columns), both in the order of the jobs."""
    order = [frame[name].drop_duplicates() for name in ("source", "target")]
    return frame.pivot(index="source", columns="target", values=column).reindex(
        index=order[0], columns=order[1]
    )


def draw_heat_map(values: pd.DataFrame, title: str) -> Figure:
    """Draw a matrix in colours with its numbers written on them."""
    rows, columns = values.shape
    figure = Figure(figsize=(3.5 + columns, 1.5 + 0.5 * rows), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(values, "viridis", aspect="auto"), ax=axes)
    axes.set_xticks(range(columns), values.columns)
    axes.set_yticks(range(rows), values.index)
    axes.set(xlabel="evaluated on", ylabel="trained as", title=title)
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (row, column), value in np.ndenumerate(values.to_numpy(float)):
        color = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
    return figure


def format_score_matrix(frame: pd.DataFrame, metric: str) -> str:
    """Format mean ± standard deviation of a metric, sources by targets, as Markdown."""
    means, stds = (pivot_sources_targets(frame, f"{metric}_{part}") for part in ("mean", "std"))
    rows = [[f"{tables.format_header(metric)}: source \\ target", *means]]
    for source in means.index:
        pairs = zip(means.loc[source], stds.loc[source], strict=True)
        rows.append([source, *("-" if np.isnan(m) else f"{m:.3f} ± {s:.3f}" for m, s in pairs)])
    return tables.to_markdown(rows)


def format_summary(frame: pd.DataFrame) -> str:
    """Format sources by targets for every metric, or all metrics of a single target."""
    if frame["target"].nunique() == 1:
        summary = frame.set_index("source").drop(columns=["target", "method"])
        return tables.summary_to_markdown(summary)
    metrics = [m for m in (*PRIMARY_METRICS, "hd95_mm", "folds_percent") if f"{m}_mean" in frame]
    return "\n".join(format_score_matrix(frame, metric) for metric in metrics)


def draw_curve(frame: pd.DataFrame, x_axis: str) -> Figure:
    """Draw the primary metric against a setting of the runs, a line for each method."""
    metric = find_primary_metric(frame, "_mean")
    named = frame.rename(columns={f"{metric}_mean": metric}).dropna(subset=[x_axis])
    titles = {metric: PRIMARY_METRICS[metric]}
    return plot_metrics(named[[x_axis, metric, "method"]], x_axis, titles, "method")


def concatenate_job_tables(
    jobs: Sequence[dict[str, Any]], name: str, column: str
) -> pd.DataFrame | None:
    """Concatenate the tables ``<name>.csv`` of the jobs, with their source in ``column``."""
    several = len({job["target"] for job in jobs}) > 1
    frames = []
    for job in jobs:
        path = Path(job["folder"]) / f"{name}.csv"
        if path.is_file() and not job["error"]:
            source = f"{job['source']} on {job['target']}" if several else job["source"]
            frames.append(pd.read_csv(path).assign(**{column: source}))
    return pd.concat(frames) if frames else None


def write_multirun_report(sweep: Path, x_axis: str | None = None) -> None:
    """Write the report of the jobs of a sweep that have ended so far.

    It consists of ``summary.csv`` and ``summary.md``; ``shift.png`` where there are several
    targets; ``curve.csv`` and ``curve.png`` with ``x_axis``; and the curves of energy and of
    iterations of all jobs in one where jobs have them.
    """
    jobs = read_jobs(sweep)
    frame = tabulate_jobs(jobs, x_axis)
    failed = [j for j in jobs if j["error"]]
    failures = [f"- {j['source']} on {j['target']} failed: {j['error']}\n" for j in failed]
    text = format_summary(frame) if len(frame) else ""
    write_text(sweep / "summary.csv", frame.to_csv(index=False))
    write_text(sweep / "summary.md", "\n".join(filter(None, [text, "".join(failures)])))
    metric = find_primary_metric(frame, "_mean")
    if metric and frame["target"].nunique() > 1:
        matrix = pivot_sources_targets(frame, f"{metric}_mean")
        draw_heat_map(matrix, PRIMARY_METRICS[metric]).savefig(sweep / "shift.png")
    if metric and x_axis and frame[x_axis].notna().any():
        write_text(sweep / "curve.csv", frame.dropna(subset=[x_axis]).to_csv(index=False))
        draw_curve(frame, x_axis).savefig(sweep / "curve.png")
    for name, (column, draw_figure) in CURVE_FIGURES.items():
        if (table := concatenate_job_tables(jobs, name, column)) is not None:
            write_text(sweep / f"{name}.csv", table.to_csv(index=False))
            draw_figure(table).savefig(sweep / f"{name}.png")
