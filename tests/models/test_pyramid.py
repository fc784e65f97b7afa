"""The Pyramid CNN: blocks against reference implementations, sizes, recovered maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab import ops
from regnet_lab.models import Pyramid
from regnet_lab.models.pyramid import (
    BatchNorm,
    CoordinateAffine,
    DisplacementAffine,
    FeaturePyramid,
    LevelEstimator,
    Upsampling,
)
from regnet_lab.ops.cost_volume import compute_reference_cost_volume
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.types import Pair

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
CONV = {2: F.conv2d, 3: F.conv3d}
SMALL = {
    "encoder_channels": (4, 5, 6),
    "dense_channels": (5, 4),
    "upsampled_channels": 3,
    "cost_volume_radius": 1,
}
CORRECTED = {
    "context_level": "finest",
    "affine_acts_on": "coordinates",
    "residual": True,
    "norm": "encoder_instance",
    "flow_init_std": 1e-3,
}


def smooth(shape, channels=1, batch=1, sigma=2.0, seed=0):
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy(noise / noise.std()).float()


@pytest.fixture
def built(composed):
    def make(name, ndim, *overrides):
        torch.manual_seed(0)
        cfg = composed("train", "~data", f"model={name}", f"+ndim={ndim}", *overrides)
        return instantiate(cfg.model, _convert_="all")

    return make


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_published_network_has_the_published_size(built):
    model = built("pyramid_2020", 3)
    assert count(model) == count(Pyramid(3)) == 8_568_791
    running = [b for name, b in model.named_buffers() if "running" in name]
    assert sum(b.numel() for b in running) == 3_008
    assert count(model.features) == 250_272
    levels = [count(*pair) for pair in zip(model.estimators, model.rises, strict=False)]
    assert levels == [2_339_480, 1_639_109, 1_639_109, 1_544_117]
    assert count(model.estimators[-1]) == 1_156_704


def test_the_published_blocks_have_the_right_input_channels(built):
    model = built("pyramid_2020", 3)
    channels = [[layer[0].in_channels for layer in e.dense] for e in model.estimators]
    assert [first for first, *_ in channels] == [160, 192, 192, 176, 161]
    assert [e.width for e in model.estimators] == [344, 376, 376, 360, 345]
    assert [bool(e.context) for e in model.estimators] == [True, False, False, False, False]
    corrected = built("pyramid", 3)
    assert [bool(e.context) for e in corrected.estimators] == [False, False, False, True]
    assert not [m for m in corrected.modules() if isinstance(m, BatchNorm)]


@SHAPES
def test_features_halve_the_grid_and_are_shared(shape):
    ndim = len(shape)
    torch.manual_seed(0)
    for norm in ("instance", "batch", "none"):
        features = FeaturePyramid(ndim, [4, 5], norm).eval()
        image = smooth(shape)
        maps = features(image)
        x = image
        for level in features:
            for i, layer in enumerate(level):
                x = CONV[ndim](x, layer[0].weight, layer[0].bias, 1 if i else 2, 1)
                if norm == "instance":
                    axes = list(range(2, x.ndim))
                    deviation = x.var(axes, correction=0, keepdim=True) + 1e-5
                    x = (x - x.mean(axes, keepdim=True)) / deviation.sqrt()
                x = torch.where(x > 0, x, 0.2 * x)
                if norm == "batch":
                    x = x / 1.001**0.5  # the running statistics are 0 and 1 at the start
        torch.testing.assert_close(maps[-1], x, rtol=1e-3, atol=1e-5)
        assert [m.shape[1] for m in maps] == [1, 4, 5]
        sizes = [tuple(-(-n // k) for n in shape) for k in (1, 2, 4)]
        assert [tuple(m.shape[2:]) for m in maps] == sizes


@SHAPES
def test_both_images_have_the_same_features_jointly_or_separately(shape):
    torch.manual_seed(0)
    model = Pyramid(len(shape), **SMALL, **CORRECTED)
    fixed, moving = smooth(shape, batch=2, seed=1), smooth(shape, batch=2, seed=2)
    for f, m, a, b in zip(
        *zip(*model.encode(fixed, moving), strict=True),
        model.features(fixed),
        model.features(moving),
        strict=True,
    ):
        torch.testing.assert_close((f, m), (a, b))


@SHAPES
def test_batch_normalisation_updates_statistics_and_accepts_a_single_value(shape):
    norm = BatchNorm(3)
    x = 5 + 2 * smooth(shape, 3, 2)
    axes = [0, *range(2, x.ndim)]
    y = norm(x)
    torch.testing.assert_close(y.mean(axes), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.running_mean, 0.01 * x.mean(axes))
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * x.var(axes))
    single = torch.full((1, 3, *[1] * len(shape)), 4.0)
    torch.testing.assert_close(norm(single), norm.eval()(single))
    expected = (4 - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
    torch.testing.assert_close(norm(single).flatten(), expected)


def set_affine(module, matrix):
    with torch.no_grad():
        module.linear.bias.copy_(torch.from_numpy(matrix).float().flatten())


@SHAPES
def test_the_published_affine_map_acts_on_the_displacement(shape):
    ndim, matrix = len(shape), np.random.default_rng(0).normal(size=(len(shape), len(shape) + 1))
    module, u = DisplacementAffine(ndim, 2), smooth(shape, ndim, seed=3)
    maps = smooth(shape, 2, seed=4), smooth(shape, 2, seed=5)
    assert torch.equal(module(*maps, u), u)
    set_affine(module, matrix)
    square = np.eye(ndim) + matrix[:, :ndim]
    expected = np.einsum("ij,j...->i...", square, u[0].numpy())
    expected += matrix[:, ndim].reshape(-1, *[1] * ndim)
    np.testing.assert_allclose(module(*maps, u)[0].detach(), expected, atol=1e-5)


@SHAPES
def test_the_corrected_affine_map_acts_on_coordinates_about_the_centre(shape):
    ndim, matrix = len(shape), np.random.default_rng(0).normal(size=(len(shape), len(shape) + 1))
    module, u = CoordinateAffine(ndim, 2), smooth(shape, ndim, seed=3)
    maps = smooth(shape, 2, seed=4), smooth(shape, 2, seed=5)
    torch.testing.assert_close(module(*maps, u), u, atol=1e-5, rtol=0)
    set_affine(module, matrix)
    half_shape = np.array(shape).reshape(-1, *[1] * ndim) / 2
    x = np.indices(shape)
    step = np.einsum("ij,j...->i...", matrix[:, :ndim], (x + 0.5) / half_shape - 1)
    step += matrix[:, ndim].reshape(-1, *[1] * ndim)
    then = [map_coordinates(c, x + step, order=1, mode="nearest") for c in u[0].numpy()]
    np.testing.assert_allclose(module(*maps, u)[0].detach(), step + then, atol=1e-4)


@SHAPES
def test_only_the_corrected_affine_map_scales_a_zero_field(shape):
    ndim = len(shape)
    matrix = np.concatenate([np.eye(ndim), np.zeros((ndim, 1))], 1)
    still, maps = torch.zeros(1, ndim, *shape), (smooth(shape, 2), smooth(shape, 2))
    moved = []
    for kind in (DisplacementAffine, CoordinateAffine):
        module = kind(ndim, 2)
        set_affine(module, matrix)
        moved.append(module(*maps, still).abs().max().item())
    assert moved == [0, pytest.approx(1 - 1 / max(shape))]


@SHAPES
def test_the_affine_coefficients_are_linear_in_the_moments_of_the_features(shape):
    ndim = len(shape)
    fixed, warped = smooth(shape, 2, 2, seed=4), smooth(shape, 2, 2, seed=5)
    features = torch.cat([fixed, warped], 1).numpy()
    half_shape = np.array(shape).reshape(-1, *[1] * ndim) / 2
    x = np.concatenate([(np.indices(shape) + 0.5) / half_shape - 1, np.ones((1, *shape))])
    axes = tuple(range(-ndim, 0))
    moments = (features[:, :, None] * x).mean(axes).reshape(2, -1)
    torch.manual_seed(0)
    for kind, pooled in ((CoordinateAffine, moments), (DisplacementAffine, features.mean(axes))):
        module = kind(ndim, 2)
        torch.nn.init.normal_(module.linear.weight)
        with torch.no_grad():
            u = module(fixed, warped, torch.zeros(2, ndim, *shape))
        centre = pooled @ module.linear.weight.detach().numpy().T
        t = centre.reshape(2, ndim, ndim + 1)[:, :, -1]  # the mean of A x' + t is t
        np.testing.assert_allclose(u.mean(axes), t, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_level_estimator_equals_its_description(shape, residual, norm):
    torch.manual_seed(0)
    ndim, kind = len(shape), CoordinateAffine if residual else DisplacementAffine
    module = LevelEstimator(
        ndim, 2, 3, kind, 1, (5, 4), (6, 3), (2, 4), residual, norm, None
    ).eval()
    torch.nn.init.normal_(module.affine.linear.weight, std=0.1)
    fixed, moving, risen = (smooth(shape, c, seed=c) for c in (2, 2, 3))
    arrived = smooth(shape, ndim, seed=9)
    with torch.no_grad():
        predicted, dense = module(fixed, moving, arrived, [risen])
        u = module.affine(fixed, ops.warp(moving, arrived), arrived)
        cost = compute_reference_cost_volume(fixed, ops.warp(moving, u), 1)
        x = torch.cat([torch.where(cost > 0, cost, 0.1 * cost), fixed, u, risen], 1)
        assert x.shape[1] == 3**ndim + 2 + ndim + 3

        def block(layer, x, dilation=1):
            conv = layer[0]
            y = CONV[ndim](x, conv.weight, conv.bias, 1, dilation, dilation)
            y = torch.where(y > 0, y, 0.2 * y)
            return y / 1.001**0.5 if norm == "batch" else y

        for layer in module.dense:
            x = torch.cat([block(layer, x), x], 1)
        change = CONV[ndim](x, module.flow.weight, module.flow.bias, padding=1)
        first, second, last = module.context
        y = block(second, block(first, x, 2), 4)
        change = change + CONV[ndim](y, last.weight, last.bias, padding=1)
        expected = ops.compose(change, u) if residual else change
    torch.testing.assert_close(dense, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted, expected, rtol=1e-3, atol=1e-4)
    assert change.abs().max() > 0.1


@SHAPES
def test_smooth_upsampling_starts_as_the_identity(shape):
    torch.manual_seed(0)
    ndim, fine = len(shape), [2 * n - 1 for n in shape]
    u, x = smooth(shape, ndim), smooth(shape, 4)
    up, carried = Upsampling(ndim, 4, 3, smooth=True)(u, x, fine)
    torch.testing.assert_close(up, ops.resize_field(u, fine))
    assert carried.shape == (1, 3, *fine)


@SHAPES
def test_published_upsampling_repeats_voxels_and_convolves(shape):
    torch.manual_seed(0)
    ndim, fine = len(shape), [2 * n for n in shape]
    module, u, x = Upsampling(ndim, 4, 3, smooth=False), smooth(shape, ndim), smooth(shape, 4)
    repeated = [v.numpy() for v in (u, x)]
    for axis in range(2, ndim + 2):
        repeated = [v.repeat(2, axis) for v in repeated]
    expected = [
        CONV[ndim](torch.from_numpy(v), layer.weight, layer.bias, padding=1)
        for v, layer in zip(repeated, (module.flow, module.features), strict=True)
    ]
    up, carried = module(u, x, fine)
    torch.testing.assert_close(up, 2 * expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(carried, expected[1], rtol=1e-4, atol=1e-5)


@SHAPES
@pytest.mark.parametrize("last", [0, 1, 2])
def test_fields_below_the_last_estimator_are_interpolated(shape, last):
    torch.manual_seed(0)
    context = {"context_channels": (4, 4), "context_dilations": (1, 2)}
    model = Pyramid(
        len(shape), **SMALL, **context, finest_level=last, **CORRECTED | {"flow_init_std": 0.1}
    )
    fields = model(smooth(shape, seed=1), smooth(shape, seed=2))
    sizes = [tuple(-(-n // k) for n in shape) for k in (8, 4, 2, 1)]
    assert [tuple(u.shape[2:]) for u in fields] == sizes
    assert len(model.estimators) == 4 - last
    estimated = fields[3 - last]
    for u in fields[4 - last :]:
        torch.testing.assert_close(u, ops.resize_field(estimated, u.shape[2:]))
    assert estimated.abs().max() > 0.01


@pytest.mark.parametrize("shape", [(9, 11), (9, 10, 9), (17, 9, 9)])
def test_gradients_under_mixed_precision_are_those_of_single(shape):
    """The coarsest grids have two voxels along an axis, where bfloat16 convolutions went wrong."""
    fixed, moving = smooth(shape, seed=1), smooth(shape, seed=2)
    slopes = []
    for mixed in (False, True):
        torch.manual_seed(0)
        model = Pyramid(len(shape), **SMALL, **CORRECTED | {"flow_init_std": 0.01})
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            fields = model(fixed, moving)
        torch.stack([u.square().mean() for u in fields]).sum().backward()
        slopes.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    single, mixed = slopes
    assert (mixed - single).norm() < 0.2 * single.norm()


@SHAPES
def test_without_flow_weights_the_corrected_model_is_the_identity(shape):
    model = Pyramid(len(shape), **SMALL, **CORRECTED | {"flow_init_std": 0.0})
    for u in model(smooth(shape, seed=1), smooth(shape, seed=2)):
        assert u.abs().max() < 1e-5


@pytest.mark.parametrize("model", ["pyramid", "pyramid_2020"])
@pytest.mark.parametrize("loss", ["pyramid", "pyramid_pretrain", "pyramid_joint", "pyramid_task02"])
def test_every_loss_preset_fits_both_models(model, loss, composed, built):
    shape = (20, 17)
    cfg = composed("train", "~data", f"model={model}", f"loss={loss}", "+ndim=2")
    terms = instantiate(cfg.loss, _convert_="all")
    net = built(model, 2, "model.encoder_channels=[4,4,4,4]", "model.dense_channels=[4,4]")
    labels = smooth(shape, 3, 1, 2.0, 3).argmax(1, keepdim=True)
    pair = Pair(
        fixed=smooth(shape, seed=1), moving=smooth(shape, seed=2), spacing=torch.ones(1, 2),
        name=["a"],
    )  # fmt: skip
    labelled = Pair(**pair, fixed_labels=labels, moving_labels=labels.flip(2))
    out = apply_displacement(pair, net(pair["fixed"], pair["moving"]))
    values = [
        {key: (term.weight * term(p, out)).item() for key, term in terms.items()}
        for p in (pair, labelled)
    ]
    assert np.isfinite([*values[0].values(), *values[1].values()]).all()
    overlap = [v.pop("overlap") for v in values]
    assert overlap[0] == 0 < overlap[1]
    assert values[0] == values[1]


def affine_pairs(rng, ndim, shape, batch, linear, shift):
    """Images that differ by a random affine map with known displacement."""
    noise = gaussian_filter(rng.normal(size=(batch, 1, *shape)), [0, 0, *[2.0] * ndim])
    moving = torch.from_numpy(noise / noise.std()).float()
    matrix = torch.from_numpy(rng.uniform(-1, 1, (batch, ndim, ndim + 1))).float()
    x = ops.identity_grid(shape, moving)
    x = (x - x.mean(list(range(2, x.ndim)), keepdim=True)).flatten(2)
    u = linear * matrix[:, :, :ndim] @ x + shift * matrix[:, :, ndim:]
    u = u.view(batch, ndim, *shape)
    return ops.warp(moving, u), moving, u


def error_after_training(built, shape, steps, linear, shift):
    """Mean distance to the true displacement inside new pairs, after and before training."""
    ndim, rng = len(shape), np.random.default_rng(0)
    small = [
        "model.encoder_channels=[8,16,16]",
        "model.dense_channels=[16,16]",
        "model.context_channels=[]",
    ]
    model = built("pyramid", ndim, *small, "model.context_dilations=[]")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    core = (..., *[slice(4, -4)] * ndim)
    for _ in range(steps):
        fixed, moving, u = affine_pairs(rng, ndim, shape, 4, linear, shift)
        loss = 0
        for field in model(fixed, moving):
            grid = field.shape[2:]
            warped = ops.warp(ops.resize(moving, grid), field)
            loss = loss + (ops.resize(fixed, grid) - warped).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    fixed, moving, u = affine_pairs(rng, ndim, shape, 16, linear, shift)
    with torch.no_grad():
        error = (model(fixed, moving)[-1] - u)[core].norm(dim=1).mean()
    return error.item(), u[core].norm(dim=1).mean().item()


@pytest.mark.parametrize(("linear", "shift"), [(0.0, 4.0), (0.15, 1.0)])
def test_a_translation_and_an_affine_map_are_recovered(linear, shift, built):
    after, before = error_after_training(built, (32, 28), 60, linear, shift)
    assert after < 0.7 * before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "steps", "share"), [((32, 28), 250, 0.4), ((18, 16, 17), 120, 0.7)]
)
@pytest.mark.parametrize(("linear", "shift"), [(0.0, 3.0), (0.15, 1.0)])
def test_translations_and_affine_maps_are_recovered_well(shape, steps, share, linear, shift, built):
    after, before = error_after_training(built, shape, steps, linear, shift)
    assert after < share * before
