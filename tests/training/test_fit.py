"""Every model, in 2D and 3D, takes a training step and judges a case; training learns."""

import pytest
import torch
from pytorch_lightning import Callback

from regnet_lab.config.instantiate import build
from tests.helpers import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
QUIET = [
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.logger=false",
    "data.dataset.size=2",
]


class Records(Callback):
    def __init__(self):
        self.rows = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.rows += outputs["records"]


def parts(cfg, tmp_path):
    cfg.folder = str(tmp_path)
    records = Records()
    trainer = build(cfg.trainer, callbacks=[records], enable_checkpointing=False)
    return build(cfg.data), build(cfg.module), trainer, records


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_a_step_and_judges_a_case(model, ndim, precision, composed, tmp_path):
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
    data, module, trainer, records = parts(cfg, tmp_path)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    if before:  # what has nothing to train is judged only
        trainer.fit(module, data)
    after = dict(module.named_parameters())
    assert not before or any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(p).all() for p in after.values())
    trainer.test(module, data, verbose=False)
    methods = {row["method"] for row in records.rows}
    assert methods == {"identity", model}
    for row in records.rows:
        assert 0 <= row["dice"] <= 1
        assert row["tre_mm"] >= 0


@pytest.mark.parametrize("loss", ["ncc", "ncc_dice", "supervised"])
def test_training_lowers_its_objective_on_held_out_pairs(loss, composed, tmp_path):
    cfg = composed(
        "train",
        *QUIET[:-1],
        "model=voxelmorph_1",
        f"loss={loss}",
        "ndim=2",
        "data.dataset.shape=32",
        "data.dataset.size=24",
        "data.batch_size=4",
        "optim.lr=3e-3",
        "trainer.max_epochs=50",
        "trainer.check_val_every_n_epoch=50",
    )
    data, module, trainer, _ = parts(cfg, tmp_path)
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]
    assert after["val/loss"] < 0.95 * before["val/loss"]
    assert after["val/tre_mm"] < before["val/tre_mm"]
