"""A batch whose loss or gradient is not finite stops the training or is skipped."""

import logging

import pytest
import torch
from torch import nn

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import DivergedError, UserError

SMALL = (
    "ndim=2",
    "model=voxelmorph",
    "data.dataset.shape=24",
    "data.dataset.num_pairs=4",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.logger=false",
    "trainer.limit_val_batches=0",
    "trainer.max_epochs=1",
    "training_optimizer.lr=1e-3",
)


class FaultyTerm(nn.Module):
    """A loss of the displacement that is infinite, or has an infinite gradient, once."""

    weight = 1.0

    def __init__(self, in_gradient, at=1):
        super().__init__()
        self.in_gradient, self.at, self.calls = in_gradient, at, -1

    def forward(self, pair, out):
        self.calls += 1
        term = out.displacement.square().mean()
        if self.calls != self.at:
            return term
        return term.sub(term.detach()).sqrt() if self.in_gradient else term + torch.inf


def fit(composed, choice, in_gradient):
    cfg = composed("train", *SMALL, f"nonfinite_loss={choice}")
    module, data = instantiate_config(cfg.module), instantiate_config(cfg.data)
    module.losses["faulty"] = FaultyTerm(in_gradient)
    trainer = instantiate_config(cfg.trainer, callbacks=[], enable_checkpointing=False)
    trainer.fit(module, data)
    return module, trainer


@pytest.mark.parametrize("in_gradient", [False, True])
def test_training_stops_by_default(in_gradient, composed):
    with pytest.raises(DivergedError, match=r"step 1"):
        fit(composed, "stop", in_gradient)


@pytest.mark.parametrize("in_gradient", [False, True])
def test_the_batch_is_skipped_on_request(in_gradient, composed, caplog):
    with caplog.at_level(logging.WARNING, "regnet_lab"):
        module, trainer = fit(composed, "skip", in_gradient)
    assert trainer.global_step == 4
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert "skipped" in caplog.text


def test_another_choice_is_refused(composed):
    with pytest.raises(UserError, match="nonfinite_loss=warn: choose one of stop, skip"):
        instantiate_config(composed("train", *SMALL, "nonfinite_loss=warn").module)
