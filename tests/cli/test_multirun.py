"""Jobs of a sweep are done once, continued where they stopped, told in a table and a picture."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from regnet_lab.errors import UserError
from regnet_lab.evaluation import sweep as report
from regnet_lab.training.config_sync import difference, settings
from tests.helpers import ROOT

TINY = [
    "ndim=2",
    "model=voxelmorph_1",
    "data.dataset.shape=24",
    "data.dataset.size=4",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "doctor=null",
    "threads=1",
    "callbacks.panel=null",
    "callbacks.energy=null",
    "callbacks.last.every_n_steps=1",
]
TWO = ["trainer=ddp", "trainer.devices=2"]


def needs(plugin):
    """Skip where a plugin of the extra ``sweeps`` is missing."""
    missing = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(missing, reason="needs pip install --editable '.[sweeps]'")


def test_settings_tell_what_a_run_does_and_not_where():
    def cfg(folder, **more):
        text = {"run_dir": folder, "folder": folder, "resume": None, "optim": {"lr": 0.1}}
        return OmegaConf.create({**text, "log": "${folder}/log", **more})

    assert difference(settings(cfg("a/1")), settings(cfg("b/2"))) is None
    assert settings(cfg("a/1"))["log"] == "./log"
    other = cfg("a/1", optim={"lr": 0.2})
    assert difference(settings(cfg("a/1")), settings(other)) == "optim.lr: 0.1, not 0.2"
    more = cfg("a/1", seed=3, module={"rate": 0.1, "seed": "${seed}"})
    assert difference(settings(cfg("a/1")), settings(more)) == "seed: absent, not 3"


def result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, command):
    arguments = ["-m", *TINY, "optim.lr=1e-3,2e-3", "sweep_dir=s", "data.epoch_size=30"]
    first, second = (tmp_path / "outputs" / "sweeps" / "s" / n for n in "01")
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    last = second / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, told
    stopped = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stopped < 60
    assert not (second / "result.json").exists()
    done = (first / "result.json").stat().st_mtime_ns

    again = command("train.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert (first / "result.json").stat().st_mtime_ns == done
    assert result(second)["steps"] == 60
    steps = [line for line in again.stdout.splitlines() if ", step " in line]
    assert len(steps) == (2 if stopped < 30 else 1), "the first job was not done again"
    table = pd.read_csv(first.parent / "sweep.csv")
    assert table["optim.lr"].tolist() == [1e-3, 2e-3]
    assert table["value"].tolist() == [result(first)["value"], result(second)["value"]]
    assert "**" in again.stdout, "the best job is told in bold"
    assert (first.parent / "sweep.png").is_file()

    other = command("train.py", *arguments, "loss.smoothness.weight=7")
    assert other.returncode != 0
    assert "Traceback" not in other.stderr
    assert " (loss.smoothness.weight: 0.1, not 7)" in other.stderr
    assert "choose another sweep_dir" in other.stderr
    assert (first / "result.json").stat().st_mtime_ns == done


@pytest.mark.slow
def test_a_job_of_two_processes_trains_what_one_process_trains(tmp_path, command):
    """Lightning's processes repeat the command line: each would sweep on its own (trap 5)."""
    sweep = ["optim.lr=1e-4,1e-2", "data.epoch_size=4"]
    one = command("train.py", "-m", *TINY, *sweep, "sweep_dir=one", "data.batch_size=2")
    assert one.returncode == 0, one.stderr
    two = command("train.py", "-m", *TINY, *TWO, *sweep, "sweep_dir=two", "data.batch_size=1")
    assert two.returncode == 0, two.stderr
    found = {name: tmp_path / "outputs" / "sweeps" / name for name in ("one", "two")}
    for job in "01":
        expected, value = (result(found[name] / job)["metrics"] for name in ("one", "two"))
        assert (found["two"] / job / "train_ddp_process_1.log").is_file()
        assert value == pytest.approx(expected, abs=1e-5)
    assert {p.name for p in found["two"].parent.iterdir()} == {"one", "two"}
    values = [result(found["two"] / job)["metrics"]["val/loss"] for job in "01"]
    assert abs(values[0] - values[1]) > 1e-4, "the two jobs differ"


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_a_seeded_search_of_two_processes_repeats_and_continues_itself(tmp_path, command):
    search = ["-m", *TINY, *TWO, "+sweep=optuna", "sweep_dir=s", "data.epoch_size=2"]
    done = command("train.py", *search, "hydra.sweeper.n_trials=1")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "outputs" / "sweeps" / "s" / "0" / "result.json"
    written = first.stat().st_mtime_ns
    more = command("train.py", *search, "hydra.sweeper.n_trials=2")
    assert more.returncode == 0, more.stderr
    assert first.stat().st_mtime_ns == written
    table = pd.read_csv(first.parents[1] / "sweep.csv")
    assert len(table) == table["optim.lr"].nunique() == 2
    assert table["optim.lr"].between(1e-4, 1e-2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["joblib", "hydra.launcher.n_jobs=2"], marks=needs("hydra_joblib_launcher")),
        pytest.param(["submitit_local"], marks=needs("hydra_submitit_launcher")),
    ],
    ids=lambda launcher: launcher[0],
)
def test_a_launcher_runs_the_jobs_side_by_side(launcher, tmp_path, command):
    name, *more = launcher
    sweep = [f"hydra/launcher={name}", *more, "seed=1,2", "sweep_dir=s"]
    done = command("train.py", "-m", *TINY, *sweep, "data.epoch_size=2", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "s" / "sweep.csv")
    assert table["seed"].tolist() == [1, 2]
    assert table["steps"].tolist() == [2, 2]


JOBS = [  # overrides, value
    (["optim.lr=1e-4", "model=faim", "threads=1"], 0.5),
    (["optim.lr=1e-2", "model=gradirn", "threads=1"], 0.7),
    (["optim.lr=1e-3", "model=voxelmorph", "threads=1"], 0.6),
    (["optim.lr=1e-1", "model=faim", "threads=1"], None),
]


@pytest.fixture
def swept(tmp_path):
    for place, (overrides, value) in enumerate(JOBS):
        folder = tmp_path / str(place)
        folder.mkdir()
        note = {"overrides": overrides, "error": None if value else "it diverged"}
        (folder / "job.json").write_text(json.dumps(note), encoding="utf-8")
        if value:
            known = {"monitor": "val/dice", "value": value, "best": value + 0.1, "steps": 9}
            known["metrics"] = {"val/dice": value, "val/tre_mm": 2.0}
            (folder / "result.json").write_text(json.dumps(known), encoding="utf-8")
    return tmp_path


def test_the_table_has_what_differs_and_what_came_of_it(swept):
    table = report.write(swept)
    assert table.attrs["varied"] == ["optim.lr", "model"]
    assert table["optim.lr"].tolist() == [1e-4, 1e-2, 1e-3, 1e-1]
    written = pd.read_csv(swept / "sweep.csv")
    assert written["val/tre_mm"].tolist()[:3] == [2.0] * 3
    lines = (swept / "sweep.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| job | optim.lr | model | val/dice | best | steps |"
    assert lines[2] == "| 0 | 0.0001 | faim | 0.5000 | 0.6000 | 9 |"
    assert lines[3].startswith("| **1** | **0.01** | **gradirn** | **0.7000**")
    assert "failed: it diverged" in lines[5]
    assert "**2**" not in lines[4]
    report.write(swept, "min")
    assert "**0**" in (swept / "sweep.md").read_text(encoding="utf-8")


def test_the_picture_shows_every_finished_job_on_every_axis(swept):
    table = report.jobs(swept)
    figure = report.parallel_coordinates(table, table.attrs["varied"])
    axes, bar = figure.axes
    drawn = {line.get_label(): line for line in axes.lines if line.get_label()[:3] == "job"}
    assert set(drawn) == {"job 0", "job 1", "job 2"}
    # lr is logarithmic, models go by the alphabet, the monitor is linear
    heights = {"job 0": [0, 0, 0], "job 1": [1, 0.5, 1], "job 2": [0.5, 1, 0.5]}
    for job, expected in heights.items():
        assert drawn[job].get_ydata() == pytest.approx(expected)
    widths = {job: line.get_linewidth() for job, line in drawn.items()}
    assert max(widths, key=widths.get) == "job 1"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["optim.lr", "model", "val/dice"]
    words = {text.get_text(): tuple(text.xy) for text in axes.texts}
    assert words["gradirn"] == (1, 0.5)
    assert words["0.01"] == (0, 1)
    assert axes.get_title() == "3 jobs, 1 without a value"
    assert bar.get_ylabel() == "val/dice"


def test_one_value_stands_in_the_middle_and_small_ranges_are_linear():
    heights, marks, words = report.scaled(pd.Series([3.0, 3.0]))
    assert (heights.tolist(), marks, words) == ([0.5, 0.5], [0.5], ["3"])
    heights, _, _ = report.scaled(pd.Series([1.0, 2.0, 5.0]))
    assert heights.tolist() == [0, 0.25, 1]
    heights, marks, words = report.scaled(pd.Series([1.0, 10, 100, 1e3, 1e4, 1e5]))
    assert heights == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for height, word in zip(marks, words, strict=True):
        assert math.log10(float(word)) / 5 == pytest.approx(height, abs=1e-3)


def test_a_folder_without_jobs_is_named(tmp_path):
    with pytest.raises(UserError, match="no job of a sweep"):
        report.jobs(tmp_path)
