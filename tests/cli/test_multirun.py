"""Jobs of a sweep run once, continue where they stopped, and are reported as table and figure."""

import json
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

from regnet_lab.config.settings import describe_difference, flatten_settings
from tests.helpers import ROOT

TINY = [
    "ndim=2",
    "model=voxelmorph_1",
    "data.dataset.shape=24",
    "data.dataset.num_pairs=4",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "validate_data=null",
    "threads=1",
    "callbacks.validation_figure=null",
    "callbacks.energy_curve=null",
    "callbacks.last.every_n_steps=1",
]
TWO = ["trainer=ddp", "trainer.devices=2"]


def requires_plugin(plugin):
    """Skip a test if a plugin of the extra ``sweeps`` is not installed."""
    missing = find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(missing, reason="needs pip install --editable '.[sweeps]'")


def test_settings_do_not_depend_on_the_folder_of_the_run():
    def cfg(folder, **more):
        text = {
            "run_dir": folder,
            "output_dir": folder,
            "resume": None,
            "training_optimizer": {"lr": 0.1},
        }
        return OmegaConf.create({**text, "log": "${output_dir}/log", **more})

    assert describe_difference(flatten_settings(cfg("a/1")), flatten_settings(cfg("b/2"))) is None
    assert flatten_settings(cfg("a/1"))["log"] == "./log"
    changed = cfg("a/1", training_optimizer={"lr": 0.2})
    assert (
        describe_difference(flatten_settings(cfg("a/1")), flatten_settings(changed))
        == "training_optimizer.lr: 0.1, not 0.2"
    )
    more = cfg("a/1", seed=3, module={"rate": 0.1, "seed": "${seed}"})
    assert (
        describe_difference(flatten_settings(cfg("a/1")), flatten_settings(more))
        == "seed: absent, not 3"
    )


def read_result(folder):
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_killed_sweep_continues_where_it_stopped(tmp_path, command):
    arguments = [
        "-m",
        *TINY,
        "training_optimizer.lr=1e-3,2e-3",
        "sweep_dir=s",
        "data.epoch_size=30",
    ]
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
    _, messages = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, messages
    stopped = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stopped < 60
    assert not (second / "result.json").exists()
    done = (first / "result.json").stat().st_mtime_ns

    again = command("train.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert (first / "result.json").stat().st_mtime_ns == done
    assert read_result(second)["steps"] == 60
    steps = [line for line in again.stdout.splitlines() if ", step " in line]
    assert len(steps) == (2 if stopped < 30 else 1), "the first job ran again"
    table = pd.read_csv(first.parent / "sweep.csv")
    assert table["training_optimizer.lr"].tolist() == [1e-3, 2e-3]
    assert table["value"].tolist() == [read_result(first)["value"], read_result(second)["value"]]
    assert "**" in again.stdout, "the best job is not bold"
    assert (first.parent / "sweep.png").is_file()

    refused = command("train.py", *arguments, "loss.smoothness.weight=7")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr
    assert " (loss.smoothness.weight: 0.1, not 7)" in refused.stderr
    assert "choose another sweep_dir" in refused.stderr
    assert (first / "result.json").stat().st_mtime_ns == done


@pytest.mark.slow
def test_job_of_two_processes_equals_one_process(tmp_path, command):
    """Lightning's processes repeat the command line: each would run the whole sweep."""
    sweep = ["training_optimizer.lr=1e-4,1e-2", "data.epoch_size=4"]
    single_process = command("train.py", "-m", *TINY, *sweep, "sweep_dir=one", "data.batch_size=2")
    assert single_process.returncode == 0, single_process.stderr
    two_processes = command(
        "train.py", "-m", *TINY, *TWO, *sweep, "sweep_dir=two", "data.batch_size=1"
    )
    assert two_processes.returncode == 0, two_processes.stderr
    sweeps = {name: tmp_path / "outputs" / "sweeps" / name for name in ("one", "two")}
    for job in "01":
        expected, value = (read_result(sweeps[name] / job)["metrics"] for name in ("one", "two"))
        assert (sweeps["two"] / job / "train_ddp_process_1.log").is_file()
        assert value == pytest.approx(expected, abs=1e-5)
    assert {p.name for p in sweeps["two"].parent.iterdir()} == {"one", "two"}
    values = [read_result(sweeps["two"] / job)["metrics"]["val/loss"] for job in "01"]
    assert abs(values[0] - values[1]) > 1e-4, "the two jobs differ"


@pytest.mark.slow
@requires_plugin("hydra_optuna_sweeper")
def test_seeded_search_of_two_processes_repeats_and_continues(tmp_path, command):
    search = ["-m", *TINY, *TWO, "+sweep=optuna", "sweep_dir=s", "data.epoch_size=2"]
    done = command("train.py", *search, "hydra.sweeper.n_trials=1")
    assert done.returncode == 0, done.stderr
    first = tmp_path / "outputs" / "sweeps" / "s" / "0" / "result.json"
    written = first.stat().st_mtime_ns
    more = command("train.py", *search, "hydra.sweeper.n_trials=2")
    assert more.returncode == 0, more.stderr
    assert first.stat().st_mtime_ns == written
    table = pd.read_csv(first.parents[1] / "sweep.csv")
    assert len(table) == table["training_optimizer.lr"].nunique() == 2
    assert table["training_optimizer.lr"].between(1e-4, 1e-2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            ["joblib", "hydra.launcher.n_jobs=2"], marks=requires_plugin("hydra_joblib_launcher")
        ),
        pytest.param(["submitit_local"], marks=requires_plugin("hydra_submitit_launcher")),
    ],
    ids=lambda launcher: launcher[0],
)
def test_launcher_runs_jobs_in_parallel(launcher, tmp_path, command):
    name, *more = launcher
    sweep = [f"hydra/launcher={name}", *more, "seed=1,2", "sweep_dir=s"]
    done = command("train.py", "-m", *TINY, *sweep, "data.epoch_size=2", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "s" / "sweep.csv")
    assert table["seed"].tolist() == [1, 2]
    assert table["steps"].tolist() == [2, 2]
