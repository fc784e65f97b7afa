"""Every model trains for a step and scores a pair, in 2D and 3D; training lowers the loss."""

import pytest
import torch
from pytorch_lightning import Callback

from regnet_lab.config.instantiate import instantiate_config
from tests.helpers import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
QUIET = [
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.logger=false",
    "data.dataset.num_pairs=2",
]


class RecordCollector(Callback):
    def __init__(self):
        self.rows = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.rows += outputs["records"]


def instantiate_parts(cfg, tmp_path):
    cfg.output_dir = str(tmp_path)
    collector = RecordCollector()
    trainer = instantiate_config(cfg.trainer, callbacks=[collector], enable_checkpointing=False)
    return instantiate_config(cfg.data), instantiate_config(cfg.module), trainer, collector


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_a_step_and_scores_a_pair(model, ndim, precision, composed, tmp_path):
    shape = "[20,17]" if ndim == 2 else "[20,17,18]"
    cfg = composed(
        "train",
        *QUIET,
        f"model={model}",
        f"ndim={ndim}",
        f"data.dataset.shape={shape}",
        "loss=ncc_dice",
        f"trainer.precision={precision}",
        "+trainer.max_steps=1",
        "trainer.limit_val_batches=1",
    )
    data, module, trainer, collector = instantiate_parts(cfg, tmp_path)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    if before:  # models without weights are only scored
        trainer.fit(module, data)
    after = dict(module.named_parameters())
    assert not before or any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(p).all() for p in after.values())
    trainer.test(module, data, verbose=False)
    methods = {row["method"] for row in collector.rows}
    assert methods == {"identity", model}
    for row in collector.rows:
        assert 0 <= row["dice"] <= 1
        assert row["tre_mm"] >= 0


@pytest.mark.parametrize("loss", ["ncc", "ncc_dice", "supervised"])
def test_training_lowers_the_loss_of_held_out_pairs(loss, composed, tmp_path):
    cfg = composed(
        "train",
        *QUIET[:-1],
        "model=voxelmorph_1",
        f"loss={loss}",
        "ndim=2",
        "data.dataset.shape=32",
        "data.dataset.num_pairs=24",
        "data.batch_size=4",
        "training_optimizer.lr=3e-3",
        "trainer.max_epochs=50",
        "trainer.check_val_every_n_epoch=50",
    )
    data, module, trainer, _ = instantiate_parts(cfg, tmp_path)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]
    assert after["val/loss"] < 0.95 * before["val/loss"]
    assert after["val/tre_mm"] < before["val/tre_mm"]
