"""Training with several processes, accumulated batches and clipped gradients."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data import samplers
from regnet_lab.data.samplers import (
    DistributedEvalSampler,
    DrawNumberSampler,
    EpochSampler,
    NumberedEpochSampler,
)
from regnet_lab.errors import UserError
from regnet_lab.training import config_sync
from regnet_lab.training.config_sync import ConfigConsistencyCheck
from regnet_lab.utils import distributed
from regnet_lab.visualization.curves import read_scalars

TINY = [
    "ndim=2",
    "data.dataset.shape=24",
    "data.dataset.num_pairs=7",
    "data.epoch_size=8",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "validate_data=null",
    "threads=1",
    "callbacks.validation_figure=null",
    "callbacks.energy_curve=null",
]
ONE = ["trainer=cpu", "data.batch_size=4"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2"]


def call_on_each_rank(monkeypatch, world, make):
    """Return the results of ``make()`` in each of ``world`` processes."""
    results = []
    for rank in range(world):
        monkeypatch.setattr(samplers, "rank_and_world_size", lambda rank=rank: (rank, world))
        results.append(make())
    monkeypatch.undo()
    return results


@pytest.mark.parametrize("kind", [EpochSampler, NumberedEpochSampler, DrawNumberSampler])
@pytest.mark.parametrize(("world", "start"), [(2, 0), (3, 0), (2, 2)])
def test_several_processes_see_the_pairs_of_one_with_a_larger_batch(
    kind, world, start, monkeypatch
):
    def drawn():
        sampler = kind(10, 12, 5)
        sampler.set_epoch(3)
        sampler.start = start
        assert len(sampler) == -(-12 // distributed.rank_and_world_size()[1]) or world > 1
        return list(sampler)

    sampler = kind(10, 12, 5)
    sampler.set_epoch(3)
    whole = list(sampler)
    each = call_on_each_rank(monkeypatch, world, drawn)
    dealt = [index for turn in zip(*each, strict=True) for index in turn]
    assert dealt == whole[start * world :]
    assert len(set(whole[:10])) == 10


def test_epochs_are_rounded_up_to_equal_steps_of_all_processes(monkeypatch):
    each = call_on_each_rank(monkeypatch, 2, lambda: list(EpochSampler(7, 7, 0)))
    assert [len(e) for e in each] == [4, 4]
    assert set(each[0] + each[1]) == set(range(7))


@pytest.mark.parametrize("population", [2, 5, 6])
def test_evaluation_pairs_are_divided_without_padding(population, monkeypatch):
    each = call_on_each_rank(
        monkeypatch,
        2,
        lambda: (list(DistributedEvalSampler(population)), len(DistributedEvalSampler(population))),
    )
    assert [len(mine) for mine, _ in each] == [length for _, length in each]
    assert sorted(index for mine, _ in each for index in mine) == list(range(population))
    monkeypatch.setattr(distributed, "all_gather", lambda _: [mine for mine, _ in each])
    assert distributed.gather_interleaved([]) == list(range(population))


def test_more_processes_than_pairs_are_refused(monkeypatch):
    monkeypatch.setattr(samplers, "rank_and_world_size", lambda: (0, 3))
    with pytest.raises(UserError, match="2 pairs cannot be shared by 3 processes"):
        len(DistributedEvalSampler(2))


def fitted(composed, folder, *overrides):
    """Return the module after training and the lengths of its steps."""
    lengths = []

    class Steps(Callback):
        def on_train_start(self, trainer, pl_module):
            self.before = [p.detach().clone() for p in pl_module.parameters()]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            after = [p.detach().clone() for p in pl_module.parameters()]
            moved = [(p - q).flatten() for p, q in zip(after, self.before, strict=True)]
            lengths.append(float(torch.cat(moved).norm()))
            self.before = after

    cfg = composed("train", *TINY, "model=voxelmorph_1", "trainer.logger=false", *overrides)
    cfg.output_dir = str(folder)
    torch.manual_seed(0)
    module = instantiate_config(cfg.module)
    trainer = instantiate_config(cfg.trainer, callbacks=[Steps()], enable_checkpointing=False)
    trainer.fit(module, instantiate_config(cfg.data))
    return module, lengths


DESCENT = [
    "training_optimizer._target_=torch.optim.SGD",
    "training_optimizer.lr=1",
    "trainer.max_epochs=1",
]


def test_two_accumulated_batches_equal_one_of_twice_the_size(composed, tmp_path):
    whole, _ = fitted(composed, tmp_path, *DESCENT, *ONE)
    half_batches = ["trainer=cpu", "data.batch_size=2", "trainer.accumulate_grad_batches=2"]
    parts, _ = fitted(composed, tmp_path, *DESCENT, *half_batches)
    for expected, actual in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(expected, actual, atol=1e-5, rtol=0)


def test_gradient_clipping_bounds_the_step(composed, tmp_path):
    _, free = fitted(composed, tmp_path, *DESCENT, *ONE)
    bound = min(free) / 2
    clip = f"trainer.gradient_clip_val={bound}"
    _, clipped = fitted(composed, tmp_path, *DESCENT, *ONE, clip)
    assert clipped == pytest.approx([bound] * len(clipped), rel=1e-3)


@pytest.mark.parametrize("model", ["pyramid_2020", "regnet"])
def test_synchronized_batch_norm_is_refused_on_cpus(model, composed, monkeypatch):
    whole = composed("train", "trainer=ddp", f"model={model}", "ndim=2")
    shares = {"sync_batchnorm": whole.trainer.sync_batchnorm}
    cfg = OmegaConf.create({"output_dir": "run", "trainer": shares})
    network = instantiate_config(whole.model)
    shared = torch.nn.SyncBatchNorm.convert_sync_batchnorm(instantiate_config(whole.model))
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in shared.modules())
    assert shared.state_dict().keys() == network.state_dict().keys()
    monkeypatch.setattr(config_sync, "all_gather", lambda mine: [mine, mine])
    cpu, gpu = (
        SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(name)))
        for name in ("cpu", "cuda")
    )
    ConfigConsistencyCheck(cfg).setup(gpu, network, "fit")
    with pytest.raises(UserError, match=r"trainer\.sync_batchnorm=false"):
        ConfigConsistencyCheck(cfg).setup(cpu, network, "fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        ["model=voxelmorph"],
        ["model=residual_refinement", "loss=residual_refinement", "callbacks=alternating"],
    ],
    ids=lambda m: m[0],
)
def test_two_processes_train_and_evaluate_like_one(model, tmp_path, command):
    alternating = ["callbacks.alternating.epochs={model: 1, refinement: 1}"]
    model = [*model, *(alternating if "callbacks=alternating" in model else [])]
    for name, devices in (("one", ONE), ("two", TWO)):
        done = command("train.py", *TINY, *model, *devices, f"output_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    for number in ("train/loss", "val/loss", "val/dice", "val/tre_mm"):
        expected, actual = (read_scalars(tmp_path / name, number)[1] for name in ("one", "two"))
        assert len(expected) == (4 if number == "train/loss" else 2)
        assert actual == pytest.approx(expected, abs=1e-5)
    evaluation = [f"run={tmp_path / 'two'}", "trainer.enable_progress_bar=false", "num_pictures=2"]
    several = ["trainer=evaluate_ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    for name, devices in (("evaluated_by_one", []), ("evaluated_by_two", several)):
        done = command("evaluate.py", *evaluation, *devices, f"output_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    cases_of_one, cases_of_two = (
        pd.read_csv(tmp_path / f"evaluated_by_{n}" / "cases.csv") for n in ("one", "two")
    )
    cost = ["seconds", "peak_mb"]
    assert len(cases_of_one) == 2 * 7
    pd.testing.assert_frame_equal(cases_of_one.drop(columns=cost), cases_of_two.drop(columns=cost))
    pictures = [
        sorted(p.name for p in (tmp_path / f"evaluated_by_{n}/pictures").iterdir())
        for n in ("one", "two")
    ]
    assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_processes_with_different_configurations_are_refused(tmp_path, command):
    # 2 in the first process, 1 in the second
    unlike = "training_optimizer.lr='${oc.decode:${oc.env:LOCAL_RANK,2}}'"
    run = [f"output_dir={tmp_path / 'run'}", unlike]
    done = command("train.py", *TINY, *TWO, "model=voxelmorph", *run)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train:")]
    assert "Process 1" in line
    assert "training_optimizer.lr: 1, not 2" in line
