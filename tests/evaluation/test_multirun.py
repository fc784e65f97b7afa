"""Several evaluations as one report."""

import json

import numpy as np
import pandas as pd
import pytest

from regnet_lab.evaluation import multirun

DICE = {"a": {"x": 0.8, "y": 0.4}, "b": {"x": 0.6, "y": 0.7}}
BEFORE = {"x": 0.5, "y": 0.3}


def numbers(dice):
    return {"dice": {"mean": dice, "std": 0.1}, "tre_mm": {"mean": 2 * dice, "std": 0.0}}


def job(sweep, place, run, data, dice=None, error=None, overrides=(), **methods):
    folder = sweep / str(place)
    folder.mkdir(parents=True)
    if error is None:
        summary = {"cases": 3, "identity": numbers(BEFORE[data]), "net": numbers(dice), **methods}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    known = {"run": run, "model": "net", "data": data, "folder": str(folder), "error": error}
    multirun.note(folder, known | {"overrides": [f"run={run}", f"data={data}", *overrides]})


@pytest.fixture
def sweep(tmp_path):
    place = 0
    for source in DICE:
        run = tmp_path / "runs" / source
        run.mkdir(parents=True)
        setting = 0.5 if source == "a" else 1.0
        (run / "config.yaml").write_text(f"data: {{fraction: {setting}}}", encoding="utf-8")
        for target, dice in DICE[source].items():
            job(tmp_path / "sweep", place, str(run), target, dice)
            place += 1
    return tmp_path / "sweep"


def test_sources_are_rows_and_targets_columns_identity_first(sweep):
    frame = multirun.outcomes(multirun.noted(sweep))
    table = multirun.matrix(frame, "dice_mean")
    assert list(table.index) == ["identity", "a", "b"]
    assert list(table.columns) == ["x", "y"]
    np.testing.assert_allclose(table, [[0.5, 0.3], [0.8, 0.4], [0.6, 0.7]])
    text = multirun.summarised(frame)
    assert "| b | 0.600 ± 0.100 | 0.700 ± 0.100 |" in text
    assert text.startswith("| Dice: source")
    assert "| TRE (mm): source" in text


def test_a_failed_job_is_told_and_leaves_a_gap(sweep):
    job(sweep, 10, str(sweep.parent / "runs" / "c"), "x", error="it broke")
    job(sweep, 11, str(sweep.parent / "runs" / "c"), "y", 0.9)
    multirun.gather(sweep)
    text = (sweep / "summary.md").read_text(encoding="utf-8")
    assert "- c on x failed: it broke" in text
    assert "| c | - | 0.900 ± 0.100 |" in text
    assert (sweep / "shift.png").stat().st_size > 0
    assert not (sweep / "curve.csv").exists()


def test_a_single_target_gives_a_table_of_methods(tmp_path):
    job(tmp_path, 0, "a", "x", 0.8, overrides=["task.halvings=null", "seed=1"])
    job(tmp_path, 1, "a", "x", 0.9, overrides=["task.halvings=8", "seed=1"])
    frame = multirun.outcomes(multirun.noted(tmp_path))
    assert frame["source"].tolist() == ["identity", "a task.halvings=null", "a task.halvings=8"]
    lines = multirun.summarised(frame).splitlines()
    assert lines[0].split("|")[3].strip() == "Dice"
    assert "0.900 ± 0.100" in lines[4]


def test_a_run_that_is_called_by_a_number_is_told_with_its_method(tmp_path):
    job(tmp_path, 0, "sweep/0", "x", 0.8)
    frame = multirun.outcomes(multirun.noted(tmp_path))
    assert frame["source"].tolist() == ["identity", "0 net"]


def test_methods_of_one_job_stay_apart(tmp_path):
    job(tmp_path, 0, "a", "x", 0.8, **{"net x2": numbers(0.7)})
    frame = multirun.outcomes(multirun.noted(tmp_path))
    assert frame["source"].tolist() == ["identity", "a net", "a net x2"]
    assert frame["dice_mean"].tolist() == [0.5, 0.8, 0.7]


def test_a_curve_is_drawn_against_a_setting_of_the_runs(sweep):
    multirun.gather(sweep, "data.fraction")
    curve = pd.read_csv(sweep / "curve.csv")
    assert curve["source"].tolist() == ["a", "a", "b", "b"]
    assert curve["data.fraction"].tolist() == [0.5, 0.5, 1.0, 1.0]
    (axes,) = multirun.curve_figure(curve, "data.fraction").axes
    assert axes.get_xlabel() == "data.fraction"
    assert (sweep / "curve.png").stat().st_size > 0


def test_the_step_curves_of_all_jobs_become_one(tmp_path):
    for place, run in enumerate("ab"):
        job(tmp_path, place, run, "x", 0.8)
        curve = pd.DataFrame({"iterations": [9, 18], "dice": [0.8, 0.7], "energy": [1.0, place]})
        curve.assign(model="net").to_csv(tmp_path / str(place) / "steps.csv", index=False)
    multirun.gather(tmp_path)
    table = pd.read_csv(tmp_path / "steps.csv")
    assert table["model"].tolist() == ["a", "a", "b", "b"]
    assert (tmp_path / "steps.png").stat().st_size > 0
    assert not (tmp_path / "energy.csv").exists()


def test_all_jobs_failed(tmp_path):
    job(tmp_path, 0, "a", "x", error="no")
    multirun.gather(tmp_path)
    assert "a on x failed: no" in (tmp_path / "summary.md").read_text(encoding="utf-8")
