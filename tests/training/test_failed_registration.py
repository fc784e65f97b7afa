"""A registration without a finite result lowers the score of its method."""

import pytest
import torch
from torch.utils.data import default_collate

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.training.module import RegistrationModule


class Broken(torch.nn.Module):
    def forward(self, fixed, moving):
        return [torch.full((1, fixed.ndim - 2, *fixed.shape[2:]), torch.nan)]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_displacement_that_is_not_finite_counts_as_a_failure(ndim, composed, caplog):
    cfg = composed("train", f"ndim={ndim}", "data.dataset.shape=16", "data.dataset.num_pairs=1")
    pair = default_collate([instantiate_config(cfg.data).make_dataset("test")[0]])
    module = RegistrationModule(Broken(), {}, None, name="broken")
    identity, failed = module.test_step(pair, 0)["records"]
    assert identity["dice"] > 0
    assert {name: failed[name] for name in failed if name.startswith("dice")} == {
        name: 0 for name in identity if name.startswith("dice")
    }
    for name in ("tre_mm", "hd95_mm", "rmse"):
        assert failed[name] == identity[name]
    assert "broken is not finite" in caplog.text
