"""Evaluations of GraDIRN with other numbers of iterations."""

import json

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.evaluation.setup import load_module
from regnet_lab.models import GraDIRN, SliceWiseModel
from tests.helpers import CONF


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run directory with untrained weights."""

    def make(*overrides, seed=0):
        folder = tmp_path_factory.mktemp("run")
        small = ["ndim=2", "data.dataset.shape=[20,17]", "data.dataset.num_pairs=3"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*small, *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        torch.manual_seed(seed)
        weights = {"state_dict": instantiate_config(cfg.module).state_dict()}
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        (folder / "checkpoints").mkdir()
        torch.save(weights, folder / "checkpoints" / "best.ckpt")
        return folder

    return make


def test_iteration_sweep_writes_a_curve_and_evaluation_writes_energies(run_of, command):
    run = run_of("model=gradirn", "model.channels=4")
    done = command(
        "evaluate.py", f"run={run}", "task=iteration_sweep", "task.iteration_factors=[1,2]",
        "num_pictures=1",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = run / "evaluation" / "synthetic-test-iteration_sweep-full"
    curve = pd.read_csv(folder / "iteration_sweep.csv")
    assert curve["iterations"].tolist() == [9, 18]
    cases = pd.read_csv(folder / "cases.csv")
    assert list(cases["method"].unique()) == ["identity", "gradirn x1", "gradirn x2"]
    for count, method in ((9, "gradirn x1"), (18, "gradirn x2")):
        row = curve[curve["iterations"] == count].iloc[0]
        assert row["dice"] == pytest.approx(cases[cases["method"] == method]["dice"].mean())
        table = pd.read_csv(folder / "energy.csv")
        rows = table[table["method"] == method]
        assert rows["iteration"].tolist() == list(range(count + 1))
        assert rows["energy"].iloc[-1] == pytest.approx(row["energy"])
    assert (folder / "iteration_sweep.png").stat().st_size > 0
    assert (folder / "energy.png").stat().st_size > 0
    assert len(list((folder / "pictures").glob("*_iterations.png"))) == 1


def test_a_run_on_slices_evaluates_volumes(run_of, composed):
    run = run_of("model=gradirn", "model.channels=4")
    module = load_module(composed("evaluate", f"run={run}", "data=cardiac"))
    assert isinstance(module.model, SliceWiseModel)
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in module.model.model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    slice_module = load_module(composed("evaluate", f"run={run}", "data=brain2d"))
    assert isinstance(slice_module.model, GraDIRN)
    fresh = load_module(composed("evaluate", "model=gradirn", "data=cardiac"))
    assert isinstance(fresh.model, SliceWiseModel)


def test_a_multirun_evaluation_writes_one_table_even_if_a_job_fails(run_of, command, tmp_path):
    runs = [
        run_of("model=gradirn", "model.channels=4", f"data.fraction={f}", seed=k)
        for k, f in enumerate((0.5, 1))
    ]
    done = command(
        "evaluate.py", "-m", f"run={runs[0]},nowhere,{runs[1]}", "data=synthetic,chessboard",
        "++ndim=2", "trainer.limit_test_batches=2", "x_axis=data.fraction", "num_pictures=0",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "nowhere" in done.stderr
    sweep = tmp_path / "sweep"
    table = pd.read_csv(sweep / "summary.csv")
    names = [run.name for run in runs]
    assert [(s, t) for s, t in zip(table["source"], table["target"], strict=True)] == [
        ("identity", "synthetic"), ("identity", "chessboard"),
        *((name, target) for name in names for target in ("synthetic", "chessboard")),
    ]  # fmt: skip
    summary = json.loads((sweep / "0" / "summary.json").read_text(encoding="utf-8"))
    assert table["rmse_mean"].iloc[2] == pytest.approx(summary["gradirn"]["rmse"]["mean"])
    text = (sweep / "summary.md").read_text(encoding="utf-8")
    assert "nowhere on synthetic failed" in text
    curve = pd.read_csv(sweep / "curve.csv")
    assert set(curve["data.fraction"]) == {0.5, 1.0}
    for name in ("shift.png", "curve.png", "energy.png", "energy.csv"):
        assert (sweep / name).stat().st_size > 0, name
