"""The model interface for every YAML in conf/model, and properties of single models."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from scipy.ndimage import map_coordinates
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from regnet_lab import ops
from regnet_lab.models import DiffeomorphicModel, GraDIRN, VoxelMorph
from regnet_lab.models.classical.base import ClassicalMethod
from regnet_lab.models.layers import make_convolution
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.types import Pair
from tests.helpers import CONF
from tests.helpers.images import smooth

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
EVERY = pytest.mark.parametrize("name", NAMES)
SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9), (16, 20), (16, 12, 20)])
SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def images(shape, batch=1):
    return smooth(shape, 1, batch), smooth(shape, 2, batch)


@pytest.fixture
def build(composed):
    """The model of a YAML, with a fixed seed."""

    def make(name, ndim):
        torch.manual_seed(0)
        cfg = composed("train", "~data", f"model={name}", f"+ndim={ndim}")
        return instantiate(cfg.model, _convert_="all")

    return make


@EVERY
@SHAPES
def test_fields_are_coarse_to_fine_and_end_on_the_fixed_grid(name, shape, build):
    fixed, moving = images(shape, batch=2)
    fields = build(name, len(shape))(fixed, moving)
    assert isinstance(fields, list)
    for u in fields:
        assert u.shape[:2] == (2, len(shape))
        assert u.dtype == torch.float32
        assert torch.isfinite(u).all()
    sizes = [u[0].numel() for u in fields]
    assert sizes == sorted(sizes)
    pair = Pair(fixed=fixed, moving=moving, spacing=torch.ones(2, len(shape)), name=["a", "b"])
    out = apply_displacement(pair, fields)
    assert out.displacement.shape == (2, len(shape), *shape)
    assert torch.equal(out.warped, ops.warp(moving, out.displacement))


@EVERY
@SHAPES
def test_gradients_reach_every_parameter(name, shape, build):
    model = build(name, len(shape))
    parameters = dict(model.named_parameters())
    if not parameters:
        pytest.skip(f"{name} has nothing to train")
    fields = model(*images(shape, batch=2))
    generator = torch.Generator().manual_seed(0)
    torch.stack([(u * torch.randn(u.shape, generator=generator)).sum() for u in fields]).sum(
    ).backward()  # fmt: skip
    for key, parameter in parameters.items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        offset = parameter.dim() == 1  # one that a normalisation takes away again may get none
        assert offset or min(shape) < 12 or parameter.grad.abs().max() > 0, key


@EVERY
@SMALL
def test_evaluation_is_deterministic_and_equals_training(name, shape, build):
    # unrolled descent amplifies how its two forms of a gradient round: compared in double
    dtype = torch.float64 if name.startswith("gradirn") else torch.float32
    model = build(name, len(shape)).to(dtype)
    fixed, moving = (image.to(dtype) for image in images(shape))
    trained = model.train()(fixed, moving)
    kinds = {type(m).__name__ for m in model.modules()}
    model.eval()
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        trained = model(fixed, moving)  # batch statistics give other fields
    with torch.no_grad():
        first, second = model(fixed, moving), model(fixed, moving)
    for a, b, c in zip(first, second, trained, strict=True):
        assert not a.requires_grad
        assert torch.equal(a, b)
        if "BatchNorm" not in kinds:  # it answers otherwise in training, from the batch at hand
            torch.testing.assert_close(a, c)


@EVERY
@SMALL
def test_cases_of_a_batch_do_not_mix(name, shape, build):
    model = build(name, len(shape)).eval()
    fixed, moving = images(shape, batch=2)
    with torch.no_grad():
        together = model(fixed, moving)[-1]
        alone = [model(fixed[i : i + 1], moving[i : i + 1])[-1] for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-5)


@EVERY
@SMALL
def test_fields_are_float32_under_mixed_precision(name, shape, build):
    model = build(name, len(shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fields = model(*images(shape))
    assert all(u.dtype == torch.float32 and torch.isfinite(u).all() for u in fields)


@EVERY
@SMALL
def test_an_untrained_model_gives_small_nonzero_fields(name, shape, build):
    model = build(name, len(shape)).eval()
    with torch.no_grad():
        last = model(*images(shape))[-1]
    assert name != "identity" or not last.any()
    optimises = any(isinstance(part, ClassicalMethod) for part in model.modules())
    if [*model.parameters()] and not optimises:  # which may do anything to unrelated images
        assert 0 < last.abs().max() < max(shape)


@pytest.mark.parametrize(
    ("name", "ndim", "count"),
    [
        ("gradirn", 2, 88_521),
        ("gradirn", 3, 269_964),
        ("voxelmorph", 2, 106_866),
        ("voxelmorph", 3, 320_419),
        ("voxelmorph_1", 3, 259_675),
        ("regnet", 2, 318_611),
        ("regnet", 3, 904_878),
        ("regnet_crop4", 3, 1_262_973),
        ("regnet_decimation4", 3, 1_201_353),
        ("regnet_unet1", 3, 232_749),
    ],
)
def test_sizes_are_the_published_ones(name, ndim, count, build):
    assert sum(p.numel() for p in build(name, ndim).parameters()) == count


def still(model):
    """Remove the learned step of a GraDIRN."""
    for level in model.levels:
        for block in level:
            torch.nn.init.zeros_(block.regulariser[-1].weight)
            torch.nn.init.zeros_(block.regulariser[-1].bias)
    return model


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
@pytest.mark.parametrize("tau_scale", [1.0, 10.0])
def test_an_iteration_of_gradirn_descends_the_sum_of_squares(shape, tau_scale):
    ndim, step = len(shape), 1e-6
    model = still(
        GraDIRN(ndim, blocks=(1,), iterations=(1,), step_size=0.5, step_size_scale=tau_scale)
    ).double()
    fixed, moving = (image.double() for image in images(shape))
    offset = np.random.default_rng(5)
    u = offset.integers(-1, 2, (ndim, *shape)) + offset.uniform(0.2, 0.4, (ndim, *shape))
    f, m, grid = fixed[0, 0].numpy(), moving[0, 0].numpy(), np.indices(shape)

    def squares(u):
        return (f - map_coordinates(m, grid + u, order=1, mode="nearest")) ** 2

    eye = np.eye(ndim).reshape(ndim, ndim, *[1] * ndim) * step
    slope = np.stack([(squares(u + e) - squares(u - e)) / (2 * step) for e in eye])
    expected = u - 0.25 * tau_scale * slope  # tau shared by one iteration and the start
    (block,) = model.levels[0]
    moved = model.descend(block, fixed, moving, torch.from_numpy(u)[None])
    np.testing.assert_allclose(moved[0].detach(), expected, atol=1e-7)
    assert np.abs(slope).max() > 0.05


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 8)])
def test_the_first_steps_of_gradirn_on_a_ramp(shape):
    ndim, rates = len(shape), torch.arange(1.0, len(shape) + 1) / 40
    x = ops.identity_grid(shape, rates)
    moving = (x * rates.view(1, -1, *[1] * ndim)).sum(1, keepdim=True)
    fixed = moving + 0.1
    model = still(
        GraDIRN(ndim, blocks=(1, 1), iterations=(1, 1), step_size=0.3, step_size_scale=10.0)
    )
    coarse, fine = model.eval()(fixed, moving)
    core, tau = (..., *[slice(2, -2)] * ndim), 0.3 / 3 * 10
    slope = 2 * rates  # of the ramp in voxels twice as wide
    u = -tau * 2 * -0.1 * slope
    expected = u.view(1, -1, *[1] * ndim).expand_as(coarse)[core]
    torch.testing.assert_close(coarse[core], expected, rtol=1e-3, atol=1e-6)
    u = 2 * u
    u = u - tau * 2 * (rates @ u - 0.1) * rates
    inner = (..., *[slice(4, -4) if n > 8 else slice(3, -3) for n in shape])
    expected = u.view(1, -1, *[1] * ndim).expand_as(fine)[inner]
    torch.testing.assert_close(fine[inner], expected, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("shape", [(18, 22), (14, 16, 12)])
@pytest.mark.parametrize(
    ("energy", "tau_scale"), [(similarity.mean_squares, 40.0), (similarity.global_ncc, 2.0)]
)
def test_the_energy_falls_over_the_iterations_of_gradirn(shape, energy, tau_scale):
    fixed = smooth(shape, 1, sigma=3.0)
    moving = ops.warp(fixed, 2 * smooth(shape, 3, channels=len(shape), sigma=4.0) - 1)
    model = GraDIRN(len(shape), (1,), (8,), energy, step_size=0.9, step_size_scale=tau_scale)
    fields = still(model).eval()(fixed, moving)
    energies = [energy(fixed, ops.warp(moving, u)).item() for u in [0 * fields[0], *fields]]
    assert all(after < before for before, after in pairwise(energies))
    assert energies[-1] < 0.8 * energies[0]


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 4)])
@pytest.mark.parametrize("energy", [similarity.mean_squares, similarity.global_ncc])
def test_training_differentiates_through_the_gradient_steps_of_gradirn(shape, energy):
    torch.manual_seed(0)
    model = GraDIRN(
        len(shape),
        (1, 1),
        (1, 2),
        energy,
        layers=2,
        channels=3,
        flow_init_std=0.1,
        step_size_scale=3.0,
    ).double()
    fixed, moving = (image.double() for image in images(shape))
    names, values = zip(*model.named_parameters(), strict=True)

    def fields(*parameters):
        named = dict(zip(names, parameters, strict=True))
        return tuple(functional_call(model, named, (fixed, moving)))

    assert torch.autograd.gradcheck(fields, values, fast_mode=True)
    tau = model.levels[1][0].tau
    (slope,) = torch.autograd.grad(fields(*values)[-1].square().sum(), tau)
    assert slope.abs() > 0


@SMALL
@pytest.mark.parametrize("regulariser_input", ["explicit", "implicit", "none"])
def test_the_regulariser_of_gradirn_gets_the_chosen_inputs(shape, regulariser_input):
    torch.manual_seed(0)
    ndim = len(shape)
    model = GraDIRN(
        ndim, regulariser_input=regulariser_input, flow_init_std=0.1, step_size=0.0, layers=3
    ).eval()
    assert model.levels[0][0].regulariser[0].in_channels == ndim + 2 * (regulariser_input != "none")
    fixed, moving = images(shape)
    last = model(fixed, moving)[-1]
    assert last.shape == (1, ndim, *shape)
    assert torch.isfinite(last).all()
    others = smooth(shape, 8), smooth(shape, 9)
    predictions = [model(others[0], moving)[-1], model(fixed, others[1])[-1]]
    # without a data step, images come in through the regulariser alone
    for prediction in predictions:
        assert torch.equal(prediction, last) == (regulariser_input == "none")


def test_the_step_size_of_gradirn_can_be_fixed():
    held = GraDIRN(2, learn_step_size=False)
    assert [key for key, p in held.named_parameters() if not p.requires_grad] == [
        f"levels.{level}.0.tau" for level in range(3)
    ]
    assert held.levels[0][0].tau.item() == pytest.approx(0.5 / 10)  # nine iterations and the start


@SMALL
def test_voxelmorph_normalises_in_the_encoder_only(shape):
    fixed, moving = images(shape)
    for normalised in (True, False):
        torch.manual_seed(0)
        model = VoxelMorph(len(shape), (4,), (4, 4), ((4,), (4,)), (4,), encoder_norm=normalised)
        names = [n for n, m in model.named_modules() if type(m).__name__ == "InstanceNorm"]
        assert [n.split(".")[0] for n in names] == (["stem", "down", "down"] if normalised else [])
        assert model(fixed, moving)[0].shape == (1, len(shape), *shape)


class Velocity(torch.nn.Module):
    """A model that always returns the same two fields."""

    def __init__(self, *fields):
        super().__init__()
        self.fields = list(fields)

    def forward(self, fixed, moving):
        return self.fields


@pytest.mark.parametrize("shape", [(24, 28), (16, 18, 20)])
def test_a_diffeomorphic_model_does_not_fold(shape):
    ndim = len(shape)
    edge = torch.ones(shape)
    for axis, n in enumerate(shape):  # at rest on the border
        along = (np.pi * torch.arange(n) / (n - 1)).sin()
        edge = edge * along.view(-1, *[1] * (ndim - axis - 1))
    v = (smooth(shape, 4, channels=ndim, sigma=3.0) - 0.5) * edge
    v = v * 2 / ops.gradient(v).abs().max()  # up to two voxels per voxel
    fields = DiffeomorphicModel(Velocity(v / 2, v))(*images(shape))
    for u, velocity in zip(fields, (v / 2, v), strict=True):
        assert torch.equal(u, ops.integrate(velocity, 7))
    for scheme in ("central", "forward"):
        assert ops.jacobian_determinant(v, scheme).min() < 0
        assert ops.jacobian_determinant(fields[-1], scheme).min() > 0
    assert fields[-1].abs().max() > 2


@SMALL
def test_the_number_of_squarings_is_used(shape):
    v = smooth(shape, 4, channels=len(shape)) * 3
    none, three = (DiffeomorphicModel(Velocity(v), k)(*images(shape))[0] for k in (0, 3))
    assert torch.equal(none, v)
    assert torch.equal(three, ops.integrate(v, 3))
    assert not torch.equal(three, ops.integrate(v, 7))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 1, 1), (2, 2, 2), (2, 3, 2), (4, 2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_gradients_are_right_on_grids_smaller_than_the_kernel(shape, stride):
    torch.manual_seed(0)
    layer = make_convolution(len(shape), 16, 32, stride)
    x = torch.randn(1, 16, *shape)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    way = torch.randn_like(y)
    (low_precision,) = torch.autograd.grad(y, layer.weight, way)
    (exact,) = torch.autograd.grad(layer(x), layer.weight, way.float())
    assert torch.allclose(low_precision, exact, rtol=0.05, atol=0.05 * exact.abs().max())
