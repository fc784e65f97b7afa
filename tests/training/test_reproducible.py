"""With deterministic=true training gives the same weights bit by bit."""

import pytest
import torch

from regnet_lab.config.instantiate import build


@pytest.fixture(autouse=True)
def as_before():
    """Lightning switches it on for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def trained(cfg, folder):
    cfg.folder = str(folder)
    torch.manual_seed(cfg.seed)
    trainer = build(cfg.trainer, enable_checkpointing=False)
    module = build(cfg.module)
    trainer.fit(module, build(cfg.data))
    assert torch.are_deterministic_algorithms_enabled()
    return module.state_dict()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", ["voxelmorph", "gradirn", "pyramid", "dirvnet", "faim"])
def test_training_twice_gives_the_same_bits(model, ndim, composed, tmp_path):
    cfg = composed(
        "train",
        f"model={model}",
        f"ndim={ndim}",
        "deterministic=true",
        f"data.dataset.shape={'[20,17]' if ndim == 2 else '[20,17,18]'}",
        "data.dataset.size=2",
        "loss=ncc_dice",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "trainer.logger=false",
        "+trainer.max_steps=2",
        "trainer.limit_val_batches=0",
    )
    first, second = (trained(cfg, tmp_path / str(n)) for n in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    torch.manual_seed(1)
    other = build(cfg.module).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
