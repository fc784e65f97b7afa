"""Half precision: finite losses for every model, and computations kept in float32."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.ops.similarity import local_ncc
from tests.helpers import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
LONG = [(192, 3), (192, 2, 3)]  # a brain's longest axis


@pytest.mark.parametrize("model", MODELS)
def test_float16_gives_finite_losses_and_gradients(model, composed):
    cfg = composed("train", f"model={model}", "ndim=2", "loss=ncc_dice")
    cfg.data.dataset.shape, cfg.data.dataset.num_pairs = [20, 17], 1
    module, data = instantiate_config(cfg.module), instantiate_config(cfg.data)
    if not [*module.parameters()]:
        pytest.skip(f"{model} has nothing to train")
    module.log_dict = lambda *_, **__: None
    (pair,) = data.make_eval_dataloader("train")
    with torch.autocast("cpu", torch.float16):
        loss = module.training_step(pair, 0)
    (loss / 128).backward()  # as GradScaler does: GraDIRN's with MI is 2e6 here before it learned
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)


SENSITIVE = {"pyramid_2020", "regnet_multi_stage"}  # begin with folds, and turn with any rounding


@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_gradients_are_close_to_float32_gradients(model, composed):
    """Gradients of two pairs at initialisation; displacements are not rounded to 8 bits."""
    cfg = composed("train", f"model={model}", "ndim=2", "loss=ncc_dice")
    cfg.data.dataset.shape, cfg.data.dataset.num_pairs = 32, 2
    slopes, pairs = [], instantiate_config(cfg.data).make_dataset("train")
    batch = default_collate([pairs[0], pairs[1]])
    for mixed_precision in (False, True):
        torch.manual_seed(0)
        module = instantiate_config(cfg.module)
        if not [*module.parameters()]:
            pytest.skip(f"{model} has nothing to train")
        module.log_dict = lambda *_, **__: None
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            u = module(batch).displacement
            loss = module.training_step(batch, 0)
        loss.backward()
        slopes.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad]))
    assert (u != u.bfloat16().float()).float().mean() > 0.5
    assert torch.cosine_similarity(*slopes, dim=0) > (0.1 if model in SENSITIVE else 0.8)


def test_lightning_uses_bfloat16_for_16_mixed_on_a_cpu(tmp_path):
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        trainer = Trainer(accelerator="cpu", precision="16-mixed", default_root_dir=tmp_path)
    assert trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("shape", LONG)
def test_bfloat16_coordinates_would_be_a_fifth_of_a_voxel_off(shape):
    """The figure of docs/concepts/design.md: units of [-1, 1] have steps of 2^-8 in bfloat16."""
    x = torch.linspace(0, 191, 10001)
    rounded = (((2 * x + 1) / 192 - 1).bfloat16().float() + 1) * 96 - 0.5
    assert (rounded - x).abs().max() == pytest.approx(0.19, abs=0.003)
    ramp = torch.arange(192.0).view(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape)
    points = torch.zeros(1, len(shape), len(x), *[1] * (len(shape) - 1))
    points[0, 0] = x.view(-1, *[1] * (len(shape) - 1))
    with torch.autocast("cpu", torch.bfloat16):
        values = ops.sample(ramp, points)
    assert (values.flatten() - x).abs().max() < 1e-4


@pytest.mark.parametrize("shape", LONG)
@DTYPES
def test_a_displacement_of_half_a_long_axis_is_exact(shape, dtype):
    """Coordinates above 256, not exact in bfloat16, are added in float32."""
    ramp = torch.arange(192.0).view(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape)
    u = torch.zeros(1, len(shape), *shape)
    u[:, 0] = 95.3125
    u.requires_grad_()
    with torch.autocast("cpu", dtype):
        warped = ops.warp(ramp, u)
    inside = warped[:, :, :96]
    assert (inside - ramp[:, :, :96] - 95.3125).abs().max() < 1e-4
    inside.sum().backward()
    torch.testing.assert_close(u.grad[:, 0, :96], torch.ones_like(u.grad[:, 0, :96]))


@pytest.mark.parametrize("shape", [(160, 24), (96, 12, 14)])
@DTYPES
def test_windows_of_nine_voxels_keep_their_variance(shape, dtype):
    """Homogeneous CT values: variances are small against squares, which overflow float16."""
    image = 1000 + 3 * torch.randn(1, 1, *shape)
    linear_image = 0.5 * image + 100 + 0.1 * torch.randn_like(image)
    exact = local_ncc(image, linear_image)
    with torch.autocast("cpu", dtype):
        mixed = local_ncc(image, linear_image)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, exact)
    assert exact.item() < 0.05
