"""The report of a multirun of evaluations."""

import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from regnet_lab.evaluation import multirun

DICE = {"a": {"x": 0.8, "y": 0.4}, "b": {"x": 0.6, "y": 0.7}}
BEFORE = {"x": 0.5, "y": 0.3}


def split_cells(text):
    """Return the cells of each row of Markdown tables."""
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()]


def numbers(dice):
    return {"dice": {"mean": dice, "std": 0.1}, "tre_mm": {"mean": 2 * dice, "std": 0.0}}


def write_job(sweep, number, run, data, dice=None, error=None, overrides=(), **methods):
    folder = sweep / str(number)
    folder.mkdir(parents=True)
    if error is None:
        summary = {"cases": 3, "identity": numbers(BEFORE[data]), "net": numbers(dice), **methods}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    job = {"run": run, "model": "net", "data": data, "folder": str(folder), "error": error}
    multirun.write_job(folder, job | {"overrides": [f"run={run}", f"data={data}", *overrides]})


@pytest.fixture
def sweep(tmp_path):
    number = 0
    for source in DICE:
        run = tmp_path / "runs" / source
        run.mkdir(parents=True)
        setting = 0.5 if source == "a" else 1.0
        config = {"output_dir": str(run), "data": {"fraction": setting}}
        OmegaConf.save(config, run / "config.yaml")
        for target, dice in DICE[source].items():
            write_job(tmp_path / "sweep", number, str(run), target, dice)
            number += 1
    return tmp_path / "sweep"


def test_sources_are_rows_and_targets_columns_identity_first(sweep):
    frame = multirun.tabulate_jobs(multirun.read_jobs(sweep))
    table = multirun.pivot_sources_targets(frame, "dice_mean")
    assert list(table.index) == ["identity", "a", "b"]
    assert list(table.columns) == ["x", "y"]
    np.testing.assert_allclose(table, [[0.5, 0.3], [0.8, 0.4], [0.6, 0.7]])
    text = multirun.format_summary(frame)
    assert ["b", "0.600 ± 0.100", "0.700 ± 0.100"] in split_cells(text)
    assert text.startswith("| Dice: source")
    assert "| TRE (mm): source" in text


def test_a_failed_job_is_listed_and_leaves_a_gap(sweep):
    write_job(sweep, 10, str(sweep.parent / "runs" / "c"), "x", error="it broke")
    write_job(sweep, 11, str(sweep.parent / "runs" / "c"), "y", 0.9)
    multirun.write_multirun_report(sweep)
    text = (sweep / "summary.md").read_text(encoding="utf-8")
    assert "- c on x failed: it broke" in text
    assert ["c", "-", "0.900 ± 0.100"] in split_cells(text)
    assert (sweep / "shift.png").stat().st_size > 0
    assert not (sweep / "curve.csv").exists()


def test_a_single_target_gives_a_table_of_methods(tmp_path):
    write_job(tmp_path, 0, "a", "x", 0.8, overrides=["task.line_search_steps=null", "seed=1"])
    write_job(tmp_path, 1, "a", "x", 0.9, overrides=["task.line_search_steps=8", "seed=1"])
    frame = multirun.tabulate_jobs(multirun.read_jobs(tmp_path))
    assert frame["source"].tolist() == [
        "identity",
        "a task.line_search_steps=null",
        "a task.line_search_steps=8",
    ]
    lines = multirun.format_summary(frame).splitlines()
    assert lines[0].split("|")[3].strip() == "Dice"
    assert "0.900 ± 0.100" in lines[4]


def test_a_run_named_by_a_number_is_named_with_its_method(tmp_path):
    write_job(tmp_path, 0, "sweep/0", "x", 0.8)
    frame = multirun.tabulate_jobs(multirun.read_jobs(tmp_path))
    assert frame["source"].tolist() == ["identity", "0 net"]


def test_methods_of_one_job_stay_apart(tmp_path):
    write_job(tmp_path, 0, "a", "x", 0.8, **{"net x2": numbers(0.7)})
    frame = multirun.tabulate_jobs(multirun.read_jobs(tmp_path))
    assert frame["source"].tolist() == ["identity", "a net", "a net x2"]
    assert frame["dice_mean"].tolist() == [0.5, 0.8, 0.7]


def test_a_curve_is_drawn_against_a_setting_of_the_runs(sweep):
    multirun.write_multirun_report(sweep, "data.fraction")
    curve = pd.read_csv(sweep / "curve.csv")
    assert curve["source"].tolist() == ["a", "a", "b", "b"]
    assert curve["data.fraction"].tolist() == [0.5, 0.5, 1.0, 1.0]
    (axes,) = multirun.draw_curve(curve, "data.fraction").axes
    assert axes.get_xlabel() == "data.fraction"
    assert (sweep / "curve.png").stat().st_size > 0


def test_iteration_curves_of_all_jobs_are_joined(tmp_path):
    for number, run in enumerate("ab"):
        write_job(tmp_path, number, run, "x", 0.8)
        curve = pd.DataFrame({"iterations": [9, 18], "dice": [0.8, 0.7], "energy": [1.0, number]})
        curve.assign(model="net").to_csv(
            tmp_path / str(number) / "iteration_sweep.csv", index=False
        )
    multirun.write_multirun_report(tmp_path)
    table = pd.read_csv(tmp_path / "iteration_sweep.csv")
    assert table["model"].tolist() == ["a", "a", "b", "b"]
    assert (tmp_path / "iteration_sweep.png").stat().st_size > 0
    assert not (tmp_path / "energy.csv").exists()


def test_a_report_of_failed_jobs_only(tmp_path):
    write_job(tmp_path, 0, "a", "x", error="no")
    multirun.write_multirun_report(tmp_path)
    assert "a on x failed: no" in (tmp_path / "summary.md").read_text(encoding="utf-8")
