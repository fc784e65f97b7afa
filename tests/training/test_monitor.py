"""A monitored metric that the data cannot give is refused before training."""

import pytest

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.training.monitor import check_monitor

SMALL = ("ndim=2", "data.dataset.shape=24", "data.dataset.num_pairs=2")


@pytest.mark.parametrize("monitor", ["val/loss", "val/dice", "val/similarity", "train/loss"])
def test_metrics_of_the_data_are_accepted(monitor, composed):
    cfg = composed("train", *SMALL)
    check_monitor(monitor, instantiate_config(cfg.module), instantiate_config(cfg.data))


def test_a_misspelt_metric_is_refused_with_the_metrics_there_are(composed):
    cfg = composed("train", *SMALL)
    module, data = instantiate_config(cfg.module), instantiate_config(cfg.data)
    with pytest.raises(UserError, match=r"monitor=val/dcie.*val/loss.*val/dice"):
        check_monitor("val/dcie", module, data)


@pytest.mark.parametrize(
    ("key", "number", "minimum"),
    [("batch_size", 0, 1), ("num_workers", -1, 0), ("epoch_size", -3, 1)],
)
def test_impossible_numbers_of_the_loader_are_refused(key, number, minimum, composed):
    cfg = composed("train", *SMALL, f"data.{key}={number}")
    with pytest.raises(UserError, match=f"data.{key}={number} must be at least {minimum}"):
        instantiate_config(cfg.data)
