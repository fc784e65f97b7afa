"""Resuming of killed, interrupted and diverged trainings."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers import ROOT

LONG = [
    "ndim=2",
    "model=voxelmorph",
    "data.dataset.shape=48",
    "data.dataset.num_pairs=40",
    "data.batch_size=2",
    "trainer.limit_val_batches=2",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "callbacks.validation_figure=null",
    "callbacks.last.every_n_steps=1",
    "threads=1",
]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def stop_after_steps(folder, steps, sign):
    """Send a signal once the last checkpoint has ``steps`` steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *LONG, f"experiment_root={folder}", "run_dir=stopped"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    last = folder / "stopped" / "checkpoints" / "last.ckpt"
    while process.poll() is None:
        if last.exists() and torch.load(last, weights_only=True)["global_step"] >= steps:
            process.send_signal(sign)
            break
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, last


@pytest.mark.parametrize("steps", [5, 23])
def test_killed_run_resumes_to_the_same_weights(steps, tmp_path, command):
    code, output, last = stop_after_steps(tmp_path, steps, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    stopped_at = torch.load(last, weights_only=True)["global_step"]
    assert steps <= stopped_at < 40
    assert stopped_at % 20, "the kill should fall inside an epoch"

    assert command("train.py", *LONG, f"output_dir={tmp_path}/whole").returncode == 0
    resumed = command("train.py", f"resume={tmp_path}/stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(last, weights_only=True)["global_step"] == 40
    whole = weights(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, whole[name]) for name, value in weights(last).items())


def test_interrupt_saves_a_checkpoint_and_logs_how_to_resume(tmp_path):
    code, output, last = stop_after_steps(tmp_path, 3, signal.SIGINT)
    assert code not in (0, -signal.SIGINT), output
    assert "Traceback" not in output
    assert "resume=" in output
    assert weights(last)


def test_resumed_run_can_be_longer_but_keeps_its_model(tmp_path, command):
    short = [a for a in LONG if "max_epochs" not in a] + ["trainer.max_epochs=1"]
    assert command("train.py", *short, f"output_dir={tmp_path}/run").returncode == 0
    refused = command("train.py", f"resume={tmp_path}/run", "model=gradirn")
    assert refused.returncode == 2
    assert "model=gradirn" in refused.stderr
    longer = command("train.py", f"resume={tmp_path}/run", "trainer.max_epochs=2")
    assert longer.returncode == 0, longer.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 40


def test_divergence_names_the_term_and_keeps_the_last_finite_checkpoint(tmp_path, command):
    done = command(
        "train.py",
        *LONG,
        "training_optimizer.lr=1e18",
        "+training_optimizer.eps=1e-30",
        f"output_dir={tmp_path}/run",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert any(text in done.stderr for text in ("loss.similarity", "loss.smoothness", "gradient"))
    saved = torch.load(tmp_path / "run" / "diverged.pt", weights_only=True)
    assert ", ".join(saved["pair"]["name"]) in saved["reason"] or "gradient" in saved["reason"]
    assert saved["pair"]["fixed"].shape == (2, 1, 48, 48)
    assert saved["state_dict"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if last.exists():
        assert all(torch.isfinite(value).all() for value in weights(last).values())
