"""Tests of the commands as typed: the files they write and their error messages."""

import json

import pandas as pd
import pytest
import torch

from regnet_lab.config.overrides import expand_null_overrides

SMALL = [
    "ndim=2",
    "data.dataset.shape=24",
    "data.dataset.num_pairs=8",
    "data.epoch_size=6",
    "data.batch_size=2",
    "trainer.limit_val_batches=2",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model=voxelmorph",
    "run_dir=run",
]


@pytest.fixture
def trained(command, tmp_path):
    result = command("train.py", *SMALL)
    assert result.returncode == 0, result.stderr
    return tmp_path / "outputs" / "run"


def assert_one_message(result, *texts):
    assert result.returncode != 0
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for text in texts:
        assert text in lines[0], lines[0]


def test_run_saves_its_configuration_and_is_evaluated(trained, command):
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((trained / "tensorboard").glob("events*"))
    environment = json.loads((trained / "environment.json").read_text(encoding="utf-8"))
    assert environment["versions"]["torch"] == torch.__version__
    for checkpoint in (trained / "checkpoints").iterdir():
        torch.load(checkpoint, weights_only=True)

    result = command(
        "evaluate.py", f"run={trained}", "trainer.enable_progress_bar=false", "num_pictures=1"
    )
    assert result.returncode == 0, result.stderr
    assert "identity" in result.stdout
    folder = trained / "evaluation" / "synthetic-test-score-full"
    assert f"run: {trained}" in (folder / "evaluation_config.yaml").read_text("utf-8")
    cases = pd.read_csv(folder / "cases.csv")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert list(summary)[1:] == ["identity", "voxelmorph"]
    model = cases[cases.method == "voxelmorph"]
    assert summary["voxelmorph"]["dice"]["mean"] == pytest.approx(model.dice.mean())
    assert {"tre_mm", "hd95_mm", "sdlogj", "folds_percent", "seconds", "peak_mb"} <= set(cases)
    assert set(pd.read_csv(folder / "labels.csv").method) == {"identity", "voxelmorph"}
    assert len(list((folder / "pictures").glob("*.png"))) == 1
    assert (
        (folder / "summary.md").read_text(encoding="utf-8").splitlines()[2].startswith("| identity")
    )


def test_null_removes_a_group():
    overrides = ["augment=null", "data.dataset.num_pairs=null", "+loss=ncc", "scheduler=null"]
    assert expand_null_overrides(overrides) == [
        "~augment",
        "data.dataset.num_pairs=null",
        "+loss=ncc",
        "~scheduler",
    ]


def test_evaluation_of_identity_equals_the_identity_row_of_a_run(trained, command):
    data = ["data=synthetic", *(a for a in SMALL if a.startswith(("ndim", "data.dataset")))]
    result = command(
        "evaluate.py",
        "model=identity",
        *data,
        "output_dir=alone",
        "trainer.enable_progress_bar=false",
    )
    assert result.returncode == 0, result.stderr
    of_trained = command(
        "evaluate.py", f"run={trained}", "output_dir=of_run", "trainer.enable_progress_bar=false"
    )
    assert of_trained.returncode == 0, of_trained.stderr
    alone, of_run = (
        pd.read_csv(trained.parents[1] / name / "cases.csv") for name in ("alone", "of_run")
    )
    of_run = of_run[of_run.method == "identity"].reset_index(drop=True)
    assert set(alone.method) == {"identity"}
    assert alone.dice.tolist() == of_run.dice.tolist()
    assert alone.tre_mm.tolist() == of_run.tre_mm.tolist()


def test_best_validation_score_equals_the_score_of_evaluate(trained, command):
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    state = next(v for k, v in best["callbacks"].items() if k.startswith("ModelCheckpoint"))
    result = command(
        "evaluate.py",
        f"run={trained}",
        "split=val",
        "trainer.limit_test_batches=2",
        "output_dir=validation",
        "trainer.enable_progress_bar=false",
    )
    assert result.returncode == 0, result.stderr
    cases = pd.read_csv(trained.parents[1] / "validation" / "cases.csv")
    dice = cases[cases.method == "voxelmorph"].dice.mean()
    assert dice == pytest.approx(float(state["best_model_score"]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["loss.smoothness.wieght=1"], ["wieght"]),
        (["model=nosuchnet"], ["model=nosuchnet", "gradirn"]),
        (["trainer.precision=12"], ["12"]),
        (["data=task04", "data_root=nowhere"], ["nowhere/learn2reg2020/task_04"]),
        (["ndim=4"], ["4"]),
        (["data.dataset.shape=[16,16]", "ndim=3"], ["shape"]),
        (["resume=nowhere"], ["nowhere"]),
        (["model._target_=os.system"], ["os.system", "refused"]),
        (["training_optimizer.lr=abc"], ["abc"]),
    ],
)
def test_mistake_in_train_is_one_message(arguments, texts, command):
    assert_one_message(command("train.py", *SMALL[5:], *arguments), *texts)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["run="]),
        (["run=nowhere"], ["nowhere"]),
        (["model=identity"], ["data="]),
        (["metrics=nosuch", "run=x"], ["metrics=nosuch", "learn2reg"]),
    ],
)
def test_mistake_in_evaluate_is_one_message(arguments, texts, command):
    assert_one_message(command("evaluate.py", *arguments), *texts)


def test_checkpoint_with_code_is_refused(trained, command, tmp_path):
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            import os

            return os.mkdir, (str(trace),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    result = command("evaluate.py", f"run={trained}", f"checkpoint={tmp_path / 'evil.ckpt'}")
    assert_one_message(result, "evil.ckpt", "refused")
    assert not trace.exists()


def test_run_of_another_dimension_is_refused(trained, command):
    assert_one_message(command("evaluate.py", f"run={trained}", "data=synthetic"), "2D", "3D")
