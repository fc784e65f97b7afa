"""The commands as typed: what they leave behind and what they say when something is wrong."""

import json

import pandas as pd
import pytest
import torch

from regnet_lab.config.compose import left_out

SMALL = [
    "ndim=2",
    "data.dataset.shape=24",
    "data.dataset.size=8",
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
    done = command("train.py", *SMALL)
    assert done.returncode == 0, done.stderr
    return tmp_path / "outputs" / "run"


def one_sentence(done, *named):
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for text in named:
        assert text in lines[0], lines[0]


def test_a_run_keeps_all_that_reproduces_it_and_is_judged(trained, command):
    assert {p.name for p in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((trained / "tensorboard").glob("events*"))
    environment = json.loads((trained / "environment.json").read_text(encoding="utf-8"))
    assert environment["versions"]["torch"] == torch.__version__
    for checkpoint in (trained / "checkpoints").iterdir():
        torch.load(checkpoint, weights_only=True)

    done = command(
        "evaluate.py", f"run={trained}", "trainer.enable_progress_bar=false", "pictures=1"
    )
    assert done.returncode == 0, done.stderr
    assert "identity" in done.stdout
    folder = trained / "evaluation" / "same"
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


def test_null_leaves_a_group_out():
    given = ["augment=null", "data.dataset.size=null", "+loss=ncc", "scheduler=null"]
    assert left_out(given) == ["~augment", "data.dataset.size=null", "+loss=ncc", "~scheduler"]


def test_identity_is_judged_without_a_run_and_agrees_with_a_runs_identity_row(trained, command):
    data = ["data=synthetic", *(a for a in SMALL if a.startswith(("ndim", "data.dataset")))]
    done = command(
        "evaluate.py", "model=identity", *data, "folder=alone", "trainer.enable_progress_bar=false"
    )
    assert done.returncode == 0, done.stderr
    again = command(
        "evaluate.py", f"run={trained}", "folder=of_run", "trainer.enable_progress_bar=false"
    )
    assert again.returncode == 0, again.stderr
    alone, of_run = (
        pd.read_csv(trained.parents[1] / name / "cases.csv") for name in ("alone", "of_run")
    )
    of_run = of_run[of_run.method == "identity"].reset_index(drop=True)
    assert set(alone.method) == {"identity"}
    assert alone.dice.tolist() == of_run.dice.tolist()
    assert alone.tre_mm.tolist() == of_run.tre_mm.tolist()


def test_the_best_validation_score_is_what_evaluation_finds(trained, command):
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    state = next(v for k, v in best["callbacks"].items() if k.startswith("ModelCheckpoint"))
    done = command(
        "evaluate.py",
        f"run={trained}",
        "split=val",
        "trainer.limit_test_batches=2",
        "folder=validation",
        "trainer.enable_progress_bar=false",
    )
    assert done.returncode == 0, done.stderr
    cases = pd.read_csv(trained.parents[1] / "validation" / "cases.csv")
    dice = cases[cases.method == "voxelmorph"].dice.mean()
    assert dice == pytest.approx(float(state["best_model_score"]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["loss.smoothness.wieght=1"], ["wieght"]),
        (["model=nosuchnet"], ["model/nosuchnet", "gradirn"]),
        (["trainer.precision=12"], ["12"]),
        (["data=task04", "data_root=nowhere"], ["nowhere/learn2reg2020/task_04"]),
        (["ndim=4"], ["4"]),
        (["data.dataset.shape=[16,16]", "ndim=3"], ["shape"]),
        (["resume=nowhere"], ["nowhere"]),
        (["model._target_=os.system"], ["os.system", "refused"]),
        (["optim.lr=abc"], ["abc"]),
    ],
)
def test_a_mistake_in_training_is_one_sentence(arguments, named, command):
    one_sentence(command("train.py", *SMALL[5:], *arguments), *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["run="]),
        (["run=nowhere"], ["nowhere"]),
        (["model=identity"], ["data="]),
        (["metrics=nosuch", "run=x"], ["metrics/nosuch"]),
    ],
)
def test_a_mistake_in_evaluation_is_one_sentence(arguments, named, command):
    one_sentence(command("evaluate.py", *arguments), *named)


def test_a_checkpoint_that_holds_code_is_refused(trained, command, tmp_path):
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            import os

            return os.mkdir, (str(trace),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    done = command("evaluate.py", f"run={trained}", f"checkpoint={tmp_path / 'evil.ckpt'}")
    one_sentence(done, "evil.ckpt", "refused")
    assert not trace.exists()


def test_a_run_of_another_dimension_is_refused(trained, command):
    one_sentence(command("evaluate.py", f"run={trained}", "data=synthetic"), "2D", "3D")
