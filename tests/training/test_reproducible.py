"""Training with deterministic=true gives bit-identical weights."""

import pytest
import torch

from regnet_lab.config.instantiate import instantiate_config


@pytest.fixture(autouse=True)
def restore_determinism():
    """Lightning enables determinism for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def trained(cfg, folder):
    cfg.output_dir = str(folder)
    torch.manual_seed(cfg.seed)
    trainer = instantiate_config(cfg.trainer, enable_checkpointing=False)
    module = instantiate_config(cfg.module)
    trainer.fit(module, instantiate_config(cfg.data))
    assert torch.are_deterministic_algorithms_enabled()
    return module.state_dict()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("model", ["voxelmorph", "gradirn", "pyramid", "dirvnet", "faim"])
def test_training_is_bit_identical(model, ndim, composed, tmp_path):
    cfg = composed(
        "train",
        f"model={model}",
        f"ndim={ndim}",
        "deterministic=true",
        f"data.dataset.shape={'[20,17]' if ndim == 2 else '[20,17,18]'}",
        "data.dataset.num_pairs=2",
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
    different_seed = instantiate_config(cfg.module).state_dict()
    assert any(not torch.equal(value, different_seed[name]) for name, value in first.items())
