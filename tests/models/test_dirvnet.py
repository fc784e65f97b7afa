"""DIRV-Net: sizes, settings, units and learning."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call

from regnet_lab import losses, ops
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.models import DIRVNet
from regnet_lab.models.dirvnet import PyramidLevel
from regnet_lab.models.field_of_experts import FieldOfExperts, PiecewiseLinear, RadialBasis
from regnet_lab.ops.bspline import ControlPointGrid
from regnet_lab.ops.pairs import apply_displacement
from tests.helpers.images import smooth

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


DEGREES = pytest.mark.parametrize("degree", [1, 3])


ACTIVATIONS = pytest.mark.parametrize("activation", [PiecewiseLinear, RadialBasis])


@pytest.mark.parametrize(
    ("ndim", "options", "count"),
    [(2, {}, 19_159), (2, {"levels": 3, "units": 5, "filters": 24}, 61_575), (3, {}, 91_175)],
)
def test_sizes_are_the_published_ones(ndim, options, count):
    assert sum(p.numel() for p in DIRVNet(ndim, **options).parameters()) == count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spline_degree": 2}, "degree=2"),
        ({"control_point_spacing": 0}, "spacing"),
        ({"control_point_spacing": [4]}, "spacing"),
        ({"shared_units": 3}, "shared_units=3"),
        ({"data_kernel_size": 4}, "odd"),
        ({"activation": partial(PiecewiseLinear, num_knots=1)}, "knots=1"),
        ({"activation": partial(RadialBasis, knot_range=(1, -1))}, "knot_range"),
    ],
)
def test_invalid_settings_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        DIRVNet(2, **options)


def test_images_too_small_for_the_levels_are_refused():
    with pytest.raises(UserError, match=r"8 x 9 voxels.*lower model\.levels"):
        DIRVNet(2, levels=4)(*torch.rand(2, 1, 1, 8, 9))


def make_linear_level(ndim, units, alpha, slope, regulariser, momentum=None):
    """A level with identity filters, phi(x) = slope x and regulariser x."""

    def copying(channels, slope):
        line = partial(PiecewiseLinear, knot_range=(-100, 100), init_std=0.0, init_slope=slope)
        expert = FieldOfExperts(ndim, channels, 1, 3, line)
        torch.nn.init.zeros_(expert.kernels)
        expert.kernels.data[(slice(None), 0, *[1] * ndim)] = 1.0
        return expert

    return PyramidLevel(
        [copying(1, slope)], [copying(ndim, regulariser)], units, (alpha, alpha), momentum
    ).double()


@pytest.mark.parametrize("shape", [(20, 26), (12, 16, 14)])
@DEGREES
def test_the_data_step_descends_the_squared_residual_along_the_right_axes(shape, degree):
    ndim = len(shape)
    fixed, moving = (smooth(shape, k, sigma=3.0).double() for k in (1, 2))
    grid = ControlPointGrid(shape, [4] * ndim, degree)
    control = torch.zeros(1, ndim, *grid.control_shape, dtype=torch.double, requires_grad=True)
    energy = (ops.warp(moving, grid.evaluate(control)) - fixed).square().sum() / 2
    (slope,) = torch.autograd.grad(energy, control)
    _, moved = make_linear_level(ndim, 1, 0.01, 1.0, 0.0)(
        fixed, moving, torch.zeros_like(control), grid
    )
    step = -moved.detach() / 0.01
    like = torch.nn.functional.cosine_similarity
    assert like(step.flatten(2), slope.flatten(2), dim=2).min() > 0.9
    assert like(step.flip(1).flatten(2), slope.flatten(2), dim=2).min() < 0.8
    assert step.norm() == pytest.approx(slope.norm().item(), rel=0.2)


@pytest.mark.parametrize("shape", [(20, 26), (12, 16, 14)])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_units_lower_the_energy(shape, momentum):
    fixed = smooth(shape, 1, sigma=3.0).double()
    moving = ops.warp(fixed, 3 * smooth(shape, 3, channels=len(shape), sigma=5.0).double() - 1.5)
    grid = ControlPointGrid(shape, [4] * len(shape))
    control = torch.zeros(1, len(shape), *grid.control_shape, dtype=torch.double)
    level = make_linear_level(len(shape), 6, 1.0, 1.0, 1e-4, momentum)
    fields, _ = level(fixed, moving, control, grid)
    energies = [(ops.warp(moving, u) - fixed).square().sum() for u in [0 * fields[0], *fields]]
    assert all(b < a for a, b in pairwise(energies))
    assert energies[-1] < 0.7 * energies[0]


@SMALL
@pytest.mark.parametrize("momentum", [None, 0.4])
def test_regulariser_steps_are_those_of_the_heavy_ball(shape, momentum):
    """With R(c) = 0.5 c alone the control values follow a two-term recurrence."""
    grid = ControlPointGrid(shape, [3] * len(shape))
    start = torch.randn(1, len(shape), *grid.control_shape, dtype=torch.double)
    level = make_linear_level(len(shape), 4, 0.2, 0.0, 0.5, momentum)
    fields, last = level(*smooth(shape, 1).double().expand(2, 1, 1, *shape), start, grid)
    before, now = 1.0, 1.0
    for u in fields:
        before, now = now, now - 0.2 * 0.5 * now + (momentum or 0) * (now - before)
        torch.testing.assert_close(u, now * grid.evaluate(start), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, now * start, atol=1e-5, rtol=1e-5)


@SMALL
def test_units_can_share_their_filters(shape):
    model = DIRVNet(len(shape), units=6, shared_units=3, filters=2)
    (level,) = model.levels
    assert (len(level.data), len(level.regularisers), len(level.steps)) == (2, 2, 6)
    calls = []
    for k, expert in enumerate(level.data):
        expert.register_forward_hook(lambda *_, k=k: calls.append(k))
    model(smooth(shape, 1), smooth(shape, 2))
    assert calls == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
@ACTIVATIONS
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_gradients_of_the_whole_network(shape, activation, momentum):
    learned = partial(activation, num_knots=5, init_std=0.3)
    model = DIRVNet(
        len(shape), levels=2, units=2, filters=2, data_kernel_size=3, regulariser_kernel_size=3,
        activation=learned, control_point_spacing=2, step_size_range=(0.2, 0.4), momentum=momentum,
    ).double()  # fmt: skip
    fixed, moving = (smooth(shape, k).double() for k in (1, 2))
    names, values = zip(*model.named_parameters(), strict=True)

    def fields(*parameters):
        named = dict(zip(names, parameters, strict=True))
        return tuple(functional_call(model, named, (fixed, moving)))

    assert torch.autograd.gradcheck(fields, values, fast_mode=True)


def test_it_learns_to_register(composed):
    cfg = composed("train", "data=chessboard", "data.dataset.images.shape=24", "data.batch_size=4")
    model = DIRVNet(2, units=3, filters=8, step_size_range=(0.05, 0.1))
    batch = next(iter(instantiate_config(cfg.data).train_dataloader()))
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2), losses.EndpointError()
    history = []
    for _ in range(30):
        error = loss(batch, apply_displacement(batch, model(batch["fixed"], batch["moving"])))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        history.append(error.item())
    assert history[-1] < 0.8 * history[0]
