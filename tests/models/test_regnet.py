"""RegNet's networks, and the wrappers that apply them to whole images."""

import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models import (
    Identity,
    MultiStage,
    PretrainedModel,
    RegNet,
    RegNetCrop4,
    RegNetDecimation4,
    RegNetUNet,
    TiledModel,
)
from regnet_lab.models.regnet_2017 import pad_replicate
from regnet_lab.models.regnet_2019 import make_spline_kernel, upsample_linear

PATCHES = {
    RegNet: (54, 2),
    RegNetCrop4: (101, 21),
    RegNetDecimation4: (105, 21),
    RegNetUNet: (125, 125),
}
networks = pytest.mark.parametrize("network", PATCHES, ids=lambda n: n.__name__)


def trained(network, ndim=2, **options):
    """A network in evaluation mode and double precision, with trained running statistics."""
    torch.manual_seed(0)
    model = network(ndim, **options).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def images(shape, batch=1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 1, *shape, generator=generator, dtype=torch.float64)


@networks
def test_published_patch_sizes_give_published_output_sizes(network):
    side, answer = PATCHES[network]
    assert network.margin == (side - answer) // 2
    with torch.no_grad():
        assert trained(network).predict_field(torch.cat([*images((side, side))], 1)).shape == (
            1,
            2,
            answer,
            answer,
        )


@networks
def test_whole_images_and_patches_give_equal_fields(network):
    if network is RegNetUNet:
        pytest.skip("its patches are whole images")
    model = trained(network)
    side, answer = PATCHES[network]
    first, second = images((side + 8, side + 12))
    pair = torch.cat([first, second], 1)
    with torch.no_grad():
        whole = model(second, first)[-1]
        for start in (0, 8):
            patch = pair[..., start : start + side, start : start + side]
            at = slice(start + network.margin, start + network.margin + answer)
            expected = whole[..., at, at]
            actual = model.predict_field(patch).float()
            if network is RegNet:  # the whole field is interpolated between its answers
                actual, expected = (F.avg_pool2d(u, 2) for u in (actual, expected))
                torch.testing.assert_close(actual, expected, rtol=0, atol=0.2)
            else:
                torch.testing.assert_close(actual, expected)
    assert whole.std() > 1e-3


@networks
def test_only_voxels_within_the_influence_radius_matter(network):
    model = trained(network)
    n = 2 * model.influence_radius + 41 + model.stride
    first, second = images((n, 9))
    first.requires_grad_()
    far = []
    for at in range(n // 2, n // 2 + model.stride):
        u = model(second, first)[-1]
        (slope,) = torch.autograd.grad(u[..., at, 4].square().sum(), first)
        influential = slope[0, 0].abs().sum(1).nonzero()[:, 0]
        far.append(max(at - int(influential.min()), int(influential.max()) - at))
    assert max(far) <= model.influence_radius
    assert max(far) > model.influence_radius - 8


TILES = [
    (RegNet, (91, 67), 30),
    (RegNetCrop4, (121, 40), 33),
    (RegNetDecimation4, (118, 36), 29),
    (RegNetUNet, (170, 40), 32),
    (RegNet, (60, 4, 5), 30),
    (RegNetUNet, (100, 9, 11), 40),
    pytest.param(RegNetDecimation4, (100, 3, 4), 48, marks=pytest.mark.slow),
    pytest.param(RegNetCrop4, (100, 3, 4), 48, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(("network", "shape", "tile"), TILES)
def test_tiled_inference_has_no_seams(network, shape, tile, precision):
    model = trained(network, len(shape)).to(precision)
    fixed, moving = images(shape).to(precision)
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2:].numel()))
    with torch.no_grad():
        (whole,), (tiled,) = (TiledModel(model, t).eval()(fixed, moving) for t in (None, tile))
    assert len(sizes) > 2
    assert min(sizes[1:]) < fixed.numel()
    assert whole.std() > 1e-3
    error = (tiled - whole).abs().max() / whole.abs().max()
    assert error < (1e-5 if precision == torch.float32 else 2e-7)  # fields come in float32


@pytest.mark.parametrize(
    ("network", "shape"),
    [(RegNet, (96, 4, 5)), (RegNetUNet, (150, 9, 11)), (RegNetCrop4, (160, 40))],
)
def test_a_tile_equals_the_whole_image_to_double_precision(network, shape):
    model = trained(network, len(shape))

    def field(pair):
        ends = [
            model.margin + max((model.remainder - n) % model.stride, model.min_field_size - n)
            for n in pair.shape[2:]
        ]
        return model.predict_field(pad_replicate(pair, model.margin, ends))

    pair = torch.cat([*images(shape)], 1)
    reach = -(-model.influence_radius // model.stride) * model.stride
    start, tile = model.stride * 2, model.stride * 2
    region = slice(max(start - reach, 0), start + tile + reach)
    with torch.no_grad():
        whole = field(pair)[:, :, start : start + tile]
        within = field(pair[:, :, region])[:, :, start - region.start :][:, :, :tile]
    assert region.stop < shape[0]
    assert whole.std() > 1e-3
    torch.testing.assert_close(within, whole, rtol=0, atol=1e-12)


def test_tiles_bound_the_input_size_except_in_training():
    model = trained(RegNet)
    fixed, moving = images((200, 10))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2]))
    tiled = TiledModel(model, 20)
    with torch.no_grad():
        tiled.eval()(fixed, moving)
        assert max(sizes) <= 20 + 2 * model.influence_radius
        tiled.train()(fixed, moving)
    assert sizes[-1] == 200
    with pytest.raises(UserError, match="tile_size=1 is too small"):
        TiledModel(model, 1)


@networks
def test_the_field_of_a_training_patch_is_extended_over_its_margin(network):
    side, answer = PATCHES[network]
    model = trained(network, patch_margin=network.margin)
    fixed, moving = images((side, side), batch=2 if answer == 2 else 1)
    pair = torch.cat([moving, fixed], 1)
    with torch.no_grad():
        (u,) = model.train()(fixed, moving)  # in training by the statistics of the batch
        assert u.shape[1:] == (2, side, side)
        inner = slice(network.margin, network.margin + answer)
        actual, expected = (
            model.eval().predict_patch_field(pair)[..., inner, inner],
            model.predict_field(pair),
        )
        torch.testing.assert_close(actual, expected.float())
        assert model(fixed, moving)[0].shape == u.shape
    with pytest.raises(UserError, match=r"=3, but the network has a"):
        network(2, patch_margin=3)
    with pytest.raises(UserError, match=rf"{side + 1} voxels does not suit {network.__name__}"):
        model.train()(*images((side + 1, side + 1)))


@networks
def test_frozen_batch_norm_uses_running_statistics_in_training(network):
    fixed, moving = images((32, 40), batch=2)
    model, unfrozen = trained(network, freeze_batch_norm=True), trained(network)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        evaluated = model(fixed, moving)[0]
        assert not torch.allclose(unfrozen.train()(fixed, moving)[0], evaluated)
    learned = model.train()(fixed, moving)[0]
    torch.testing.assert_close(learned, evaluated)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    learned.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_linear_upsampling_keeps_ramps_and_the_centre(shape):
    x = ops.identity_grid(shape, torch.zeros(1))
    up = upsample_linear(x)
    assert up.shape[2:] == tuple(2 * n + 1 for n in shape)
    at = (ops.identity_grid(up.shape[2:], up) - 1) / 2
    limit = torch.tensor(shape).view(1, -1, *[1] * len(shape)) - 1.0
    torch.testing.assert_close(up, torch.minimum(at.clamp(min=0), limit))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("factor", [2, 4])
def test_the_decimation_kernel_is_a_cubic_spline_of_the_l1_distance(ndim, factor):
    kernel = make_spline_kernel(ndim, factor)[0, 0]
    assert kernel.shape == (4 * factor - 1,) * ndim
    spline = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)
    axes = torch.meshgrid(*[torch.arange(1 - 2 * factor, 2 * factor)] * ndim, indexing="ij")
    far = sum(axis.abs() for axis in axes) / factor
    expected = torch.nan_to_num(torch.from_numpy(spline(far.numpy())))
    torch.testing.assert_close(kernel, (expected / expected.sum()).float())


class Answer(torch.nn.Module):
    """A field that depends on the moving image only."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, fixed, moving):
        return [self.scale * torch.cat([moving * (k + 1) for k in range(moving.ndim - 2)], 1)]


@pytest.mark.parametrize("shape", [(13, 16), (9, 12, 10)])
def test_stages_are_composed(shape):
    fixed, moving = images(shape)
    stages = {"coarse": Answer(0.5), "fine": Answer(0.7)}
    coarse, fine = MultiStage(stages, (2, 1))(fixed, moving)
    half_shape = [-(-n // 2) for n in shape]
    torch.testing.assert_close(coarse, Answer(0.5)(None, ops.resize(moving, half_shape))[0])
    total = ops.resize_field(coarse, shape)
    warped = ops.warp(moving, total)
    residual = Answer(0.7)(None, warped)[0]
    x = ops.identity_grid(shape, residual)
    expected = residual + ops.sample(total, x + residual)
    torch.testing.assert_close(fine, expected)
    added = MultiStage(stages, (2, 1), compose=False)(fixed, moving)[-1]
    torch.testing.assert_close(added, total + residual)
    assert (fine - added).abs().max() > 0.01


def test_every_stage_needs_a_factor():
    fixed, moving = images((12, 10))
    fields = MultiStage({"a": Identity(), "b": Identity()}, (4, 1))(fixed, moving)
    assert [u.shape[2:] for u in fields] == [(3, 3), (12, 10)]
    assert not any(u.any() for u in fields)
    with pytest.raises(UserError, match="2 stages"):
        MultiStage({"a": Identity(), "b": Identity()}, (4, 2, 1))


def test_pretrained_model_loads_the_weights_of_a_run(tmp_path):
    source = trained(RegNetUNet)
    state = {f"model.{k}": v for k, v in source.state_dict().items()} | {"losses.a": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "best.ckpt")
    torch.manual_seed(1)
    model = PretrainedModel(RegNetUNet(2).double(), str(tmp_path / "best.ckpt")).eval()
    fixed, moving = images((20, 23))
    with torch.no_grad():
        assert torch.equal(model(fixed, moving)[0], source(fixed, moving)[0])
    with pytest.raises(UserError, match="another model than RegNet"):
        PretrainedModel(RegNet(2), str(tmp_path / "best.ckpt"))
    with pytest.raises(UserError, match=r"none\.ckpt"):
        PretrainedModel(RegNet(2), str(tmp_path / "none.ckpt"))
