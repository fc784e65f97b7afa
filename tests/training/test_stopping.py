"""Several processes stop together, after the same step and for the same reason."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import CommonError, DivergedError, UserError
from regnet_lab.training.callbacks import checkpoint
from regnet_lab.training.failures import rank_and_world_size, translate_errors
from regnet_lab.utils import distributed
from regnet_lab.utils.distributed import raise_on_all_ranks
from tests.helpers import ROOT

TINY = [
    "ndim=2",
    "model=voxelmorph",
    "data.dataset.shape=24",
    "data.dataset.num_pairs=7",
    "data.batch_size=2",
    "trainer.enable_progress_bar=false",
    "validate_data=null",
    "threads=1",
    "callbacks.validation_figure=null",
    "callbacks.energy_curve=null",
]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
LONG = [*TINY, *TWO, "data.epoch_size=40", "trainer.max_epochs=4", "callbacks.last.every_n_steps=5"]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(path, other_path):
    return all(
        torch.equal(value, weights(other_path)[name]) for name, value in weights(path).items()
    )


class Interrupting(Callback):
    """Request a stop at a training batch or validation case, or exit at a batch."""

    def __init__(self, last, batch, case, end):
        self.last, self.batch, self.case, self.end, self.batches_started = last, batch, case, end, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches_started += 1
        if self.batches_started == self.batch:
            self.last.request_stop()
        if self.batches_started == self.end:
            raise SystemExit

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *_):
        if batch_idx == self.case:
            self.last.request_stop()


def train(composed, folder, accumulated=1, batch=None, case=None, end=None, resumed=None):
    """Train with accumulated batches; return the highest validation loss, here the best score."""
    worst = [
        "monitor=val/loss",
        "monitor_mode=max",
        f"trainer.accumulate_grad_batches={accumulated}",
    ]
    length = ["data.epoch_size=14", "trainer.max_epochs=2"]
    cfg = composed("train", *TINY, "trainer=cpu", "trainer.logger=false", *length, *worst)
    cfg.output_dir = str(folder)
    best, last = (instantiate_config(cfg.callbacks[name]) for name in ("best", "last"))
    torch.manual_seed(0)
    module, data = instantiate_config(cfg.module), instantiate_config(cfg.data)
    trainer = instantiate_config(
        cfg.trainer, callbacks=[best, last, Interrupting(last, batch, case, end)]
    )
    with pytest.raises(SystemExit) if batch or case or end else nullcontext():
        trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
    return best.best_model_score


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (3, 1), (5, 2), (9, 4)])
def test_run_stopped_while_accumulating_batches_resumes_exactly(batch, steps, composed, tmp_path):
    """An epoch is 7 batches, a step 3: steps end with batches 3, 6, 7, 10, 13 and 14."""
    train(composed, tmp_path / "whole", 3)
    train(composed, tmp_path / "stopped", 3, batch=batch)
    whole, last = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("whole", "stopped"))
    assert torch.load(last, weights_only=True)["global_step"] == steps
    train(composed, tmp_path / "stopped", 3, resumed=last)
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert same(whole, last)


@pytest.mark.parametrize("interruption", [{"case": 4}, {"end": 8}], ids=str)
def test_score_of_a_validation_before_the_end_is_kept(interruption, composed, tmp_path):
    """The first of two validations, after 7 batches, has the higher loss."""
    score = train(composed, tmp_path / "whole")
    train(composed, tmp_path / "stopped", **interruption)
    whole, last = (tmp_path / name / "checkpoints" / "last.ckpt" for name in ("whole", "stopped"))
    assert torch.load(last, weights_only=True)["global_step"] == (
        8 if "case" in interruption else 7
    )
    assert train(composed, tmp_path / "stopped", resumed=last) == score
    assert same(whole, last)
    assert same(whole.with_name("best.ckpt"), last.with_name("best.ckpt"))
    assert not same(whole, whole.with_name("best.ckpt"))


def test_interrupt_of_one_process_stops_all(composed, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "all_gather", lambda mine: [mine, True])
    train(composed, tmp_path, batch=99)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_signal_handlers_are_restored_after_training(sign, composed, tmp_path):
    before = signal.getsignal(sign)
    train(composed, tmp_path)
    assert signal.getsignal(sign) == before


def test_divergence_is_reported_by_the_process_that_diverged(monkeypatch):
    raise_on_all_ranks(None)
    own = DivergedError("mine", {"name": ["a"]})
    with pytest.raises(DivergedError, match="mine") as alone:
        raise_on_all_ranks(own)
    assert alone.value.batch == {"name": ["a"]}
    monkeypatch.setattr(distributed, "all_gather", lambda mine: [None, "theirs", mine])
    monkeypatch.setattr(distributed, "rank_and_world_size", lambda: (2, 3))
    for mine in (None, own):
        with pytest.raises(DivergedError, match="theirs") as raised:
            raise_on_all_ranks(mine)
        assert raised.value.batch is None


def test_common_errors_are_reported_by_the_first_process(monkeypatch):
    with pytest.raises(CommonError), translate_errors("", ""):
        raise CommonError
    monkeypatch.setattr("regnet_lab.training.failures.rank_and_world_size", lambda: (1, 2))
    assert rank_and_world_size() == (0, 1)
    with pytest.raises(SystemExit) as exit_info, translate_errors("", ""):
        raise CommonError
    assert exit_info.value.code == 0
    with pytest.raises(UserError, match="mine alone"), translate_errors("", ""):
        raise UserError("mine alone")


@pytest.mark.parametrize(
    "message",
    [
        "[gloo/transport/tcp/pair.cc:525] Connection closed by peer [127.0.0.1]:9999",
        "NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote "
        "process exiting prematurely.",
    ],
)
def test_end_of_another_process_is_explained(message):
    sentence = "another process of this job has ended.*: go on"
    with pytest.raises(UserError, match=sentence), translate_errors("", "go on"):
        raise RuntimeError(message)


def children(process):
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


SIGNALS = {
    "SIGINT to the second process": lambda pid: os.kill(children(pid)[0], signal.SIGINT),
    "SIGINT to all, as from a keyboard": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGTERM to the first process": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGTERM to all": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGKILL to the second process": lambda pid: os.kill(children(pid)[0], signal.SIGKILL),
}


def stopped(folder, send):
    """Train with two processes and send a signal once there is a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *LONG, f"output_dir={folder}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        cwd=folder.parent,
        start_new_session=True,
    )
    last = folder / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.02)
    send(process.pid)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output, last


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes as Linux lists them")
def test_two_processes_stop_after_the_same_step_and_resume_exactly(tmp_path, command):
    assert command("train.py", *LONG, f"output_dir={tmp_path}/whole").returncode == 0
    for number, (signal_name, send) in enumerate(SIGNALS.items()):
        code, output, last = stopped(tmp_path / str(number), send)
        assert code != 0, signal_name
        assert "Traceback" not in output, output
        if "KILL" not in signal_name:  # Lightning may kill the first process before it logs
            assert f"resume={tmp_path / str(number)}" in output, signal_name
        assert 5 <= torch.load(last, weights_only=True)["global_step"] < 40, signal_name
        resumed = command("train.py", f"resume={tmp_path / str(number)}")
        assert resumed.returncode == 0, resumed.stderr
        assert torch.load(last, weights_only=True)["global_step"] == 40
        assert same(last, tmp_path / "whole" / "checkpoints" / "last.ckpt"), signal_name


FAULTY = """
from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs


class Faulty(PhantomPairs):
    def __init__(self, split, faulty, **settings):
        super().__init__(split, **settings)
        self.faulty = faulty == split

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        if self.faulty and index == 3:
            pair["moving"] = pair["moving"] * float("nan")
        return pair
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_nonfinite_loss_in_one_process_stops_all(split, tmp_path, command):
    """Only one of the two processes gets pair 3."""
    (tmp_path / "faulty.py").write_text(FAULTY, "utf-8")
    user = [
        "trusted_packages=[faulty]",
        "data.dataset._target_=faulty.Faulty",
        f"+data.dataset.faulty={split}",
        "data.epoch_size=40",
        f"output_dir={tmp_path / 'run'}",
    ]
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    done = command("train.py", *TINY, *TWO, *user, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train:")]
    assert "loss.similarity became nan" in line
    assert f"synthetic-{split}-0003" in line
    saved = torch.load(tmp_path / "run" / "diverged.pt", weights_only=True)
    assert f"synthetic-{split}-0003" in saved["pair"]["name"]
    assert torch.isnan(saved["pair"]["moving"]).any()
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
