"""DIRV-Net: control points, fields of experts, units, its losses, tasks and pictures."""

import json
import math
import re
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from scipy.interpolate import BSpline, RegularGridInterpolator
from scipy.ndimage import gaussian_filter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.func import functional_call

from regnet_lab import losses, ops
from regnet_lab.config.compose import CONF
from regnet_lab.config.instantiate import build
from regnet_lab.errors import UserError
from regnet_lab.evaluation.setup import callbacks
from regnet_lab.evaluation.tasks import Optimum, Passes, Pictures
from regnet_lab.models import DIRVNet, Identity
from regnet_lab.models.dirvnet import Level
from regnet_lab.models.field_of_experts import FieldOfExperts, PiecewiseLinear, RadialBasis
from regnet_lab.ops import similarity
from regnet_lab.ops.bspline import ControlGrid, control_points, cubic
from regnet_lab.ops.pairs import registered, resized
from regnet_lab.training.callbacks import CaseTable
from regnet_lab.types import Pair, Registration
from regnet_lab.visualization import dirvnet as report
from regnet_lab.visualization import dirvnet_experts

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9), (18, 25)])
SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
DEGREES = pytest.mark.parametrize("degree", [1, 3])
ACTIVATIONS = pytest.mark.parametrize("activation", [PiecewiseLinear, RadialBasis])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def smooth(shape, seed, batch=1, channels=1, sigma=2.0):
    noise = np.random.default_rng(seed).normal(size=(batch, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()


def affine(shape, seed=0, at=None):
    """A x + t, at voxels or at given coordinates (D, *grid); float64."""
    rng = np.random.default_rng(seed)
    x = np.indices(shape, dtype=float) if at is None else at
    moved = np.einsum("ij,j...->i...", rng.normal(size=(len(shape),) * 2), x)
    return torch.from_numpy(moved + rng.normal(size=(len(shape), *[1] * len(shape))))[None]


def mesh(axes):
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@pytest.mark.parametrize(
    ("ndim", "options", "count"),
    [(2, {}, 19_159), (2, {"levels": 3, "units": 5, "filters": 24}, 61_575), (3, {}, 91_175)],
)
def test_sizes_are_the_published_ones(ndim, options, count):
    assert sum(p.numel() for p in DIRVNet(ndim, **options).parameters()) == count


@SHAPES
@DEGREES
@pytest.mark.parametrize("spacing", [1, 3, 4])
def test_linear_control_values_give_the_linear_field(shape, degree, spacing):
    grid = ControlGrid(shape, [spacing] * len(shape), degree)
    at = mesh([control_points(n, spacing, degree).numpy() for n in shape])
    u = affine(shape)
    torch.testing.assert_close(grid.dense(affine(shape, at=at)), u)
    torch.testing.assert_close(grid.dense(grid.fit(u)), u)


@SHAPES
def test_degree_one_interpolates_as_scipy_does(shape):
    spacing = [4, 3, 2][: len(shape)]
    grid = ControlGrid(shape, spacing)
    values = torch.randn(1, 1, *grid.points, dtype=torch.double)
    axes = [control_points(n, s).numpy() for n, s in zip(shape, spacing, strict=True)]
    peer = RegularGridInterpolator(axes, values[0, 0].numpy())
    expected = peer(np.moveaxis(np.indices(shape), 0, -1))
    np.testing.assert_allclose(grid.dense(values)[0, 0], expected, atol=1e-10)


@SMALL
def test_degree_three_is_a_cubic_spline(shape):
    n, spacing = shape[0], 3
    grid = ControlGrid(shape, [spacing] * len(shape), 3)
    values = torch.randn(1, 1, *grid.points, dtype=torch.double)
    points = [control_points(n, spacing, 3).numpy() for n in shape]
    expected = values[0, 0].numpy()
    for axis, (p, n) in enumerate(zip(points, shape, strict=True)):
        knots = p[0] + spacing * np.arange(-2, len(p) + 2)
        expected = BSpline(knots, expected, 3, axis=axis)(np.arange(n))
    np.testing.assert_allclose(grid.dense(values)[0, 0], expected, atol=1e-10)
    torch.testing.assert_close(
        cubic(torch.tensor([0.0, 1.0, -1.0, 2.0])), torch.tensor([4, 1, 1, 0]) / 6
    )


@SHAPES
@DEGREES
def test_the_adjoint_of_interpolation(shape, degree):
    grid = ControlGrid(shape, [4] * len(shape), degree)
    control = torch.randn(2, 3, *grid.points, dtype=torch.double)
    force = torch.randn(2, 3, *shape, dtype=torch.double)
    pairing = (grid.dense(control) * force).sum()
    torch.testing.assert_close((control * grid.adjoint(force)).sum(), pairing)


@SMALL
@DEGREES
def test_no_control_values_fit_better(shape, degree):
    model = DIRVNet(len(shape), units=1, filters=1, spacing=3, degree=degree)
    grid = model.grids(shape)[-1]
    u = smooth(shape, 3, channels=len(shape)).double() * 4
    units = torch.eye(math.prod(grid.points), dtype=torch.double).view(-1, 1, *grid.points)
    basis = grid.dense(units).flatten(1).T.numpy()  # (voxels, control values)
    for component, best in zip(u[0], model.representable(u)[0], strict=True):
        fit = np.linalg.lstsq(basis, component.flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose(best.flatten(), basis @ fit, atol=1e-6)
    torch.testing.assert_close(model.representable(model.representable(u)), model.representable(u))
    assert (model.representable(u) - u).abs().max() > 1e-3


@SHAPES
@DEGREES
def test_a_finer_grid_takes_over_linear_fields_in_its_own_voxels(shape, degree):
    half = [-(-n // 2) for n in shape]
    coarse, fine = (ControlGrid(s, [4] * len(s), degree) for s in (half, shape))
    ratio = np.array([n / m for n, m in zip(shape, half, strict=True)])
    at = [(np.arange(m) + 0.5) * r - 0.5 for m, r in zip(half, ratio, strict=True)]
    factor = torch.from_numpy(ratio).view(1, -1, *[1] * len(shape))
    carried = fine.refined(coarse.fit(affine(shape, at=mesh(at)) / factor), coarse)
    torch.testing.assert_close(fine.dense(carried), affine(shape))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"degree": 2}, "degree=2"),
        ({"spacing": 0}, "spacing"),
        ({"spacing": [4]}, "spacing"),
        ({"shared": 3}, "shared=3"),
        ({"data_kernel": 4}, "odd"),
        ({"activation": partial(PiecewiseLinear, knots=1)}, "knots=1"),
        ({"activation": partial(RadialBasis, region=(1, -1))}, "region"),
    ],
)
def test_impossible_settings_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        DIRVNet(2, **options)


def test_images_too_small_for_the_levels_are_refused():
    with pytest.raises(UserError, match=r"8 x 9 voxels.*lower model\.levels"):
        DIRVNet(2, levels=4)(*torch.rand(2, 1, 1, 8, 9))


@SMALL
def test_piecewise_linear_is_numpy_s_interpolation(shape):
    phi = PiecewiseLinear(3, knots=7, region=(-0.5, 1.0), deviation=1.0)
    x = 2 * torch.randn(2, 3, *shape)
    for f in range(3):
        expected = np.interp(x[:, f].numpy(), phi.positions().numpy(), phi.values[f].detach())
        np.testing.assert_allclose(phi(x)[:, f].detach(), expected, atol=1e-5)


@SMALL
def test_radial_basis_is_a_sum_of_bells(shape):
    phi = RadialBasis(3, knots=5, region=(-1, 2), deviation=1.0)
    x = torch.randn(2, 3, *shape)
    for f in range(3):
        bells = np.exp(-((x[:, f, ..., None] - np.linspace(-1, 2, 5)) ** 2) / (2 * 0.75**2))
        expected = bells.numpy() @ phi.values[f].detach().numpy()
        np.testing.assert_allclose(phi(x)[:, f].detach(), expected, atol=1e-5)


@ACTIVATIONS
def test_activations_and_their_gradients(activation):
    phi = activation(2, knots=4, deviation=1.0).double()
    x = (torch.rand(2, 2, 3, 4, dtype=torch.double) * 3 - 1.5).requires_grad_()

    def values(x, w):
        return functional_call(phi, {"values": w}, x)

    assert torch.autograd.gradcheck(values, (x, phi.values))


@ACTIVATIONS
def test_functions_may_start_as_a_line(activation):
    phi = activation(2, knots=24, deviation=0.0, slope=0.3)
    torch.testing.assert_close(phi.values, 0.3 * torch.linspace(-1, 1, 24).expand(2, 24))


@SMALL
@pytest.mark.parametrize("channels", [1, 2])
def test_a_field_of_experts_is_the_gradient_of_its_energy(shape, channels):
    """rho, the integral of a sum of bells, is a sum of error functions."""
    term = FieldOfExperts(len(shape), channels, 3, 5, partial(RadialBasis, deviation=1.0)).double()
    z = torch.randn(2, channels, *shape, dtype=torch.double, requires_grad=True)
    knots, step = term.activation.positions().double(), term.activation.step
    convolve = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[len(shape)]
    energy = 0
    for c in range(channels):
        kernels, values = (p[3 * c : 3 * c + 3] for p in (term.kernels, term.activation.values))
        seen = convolve(z[:, c : c + 1], kernels, padding=2)
        integral = (
            step * math.sqrt(math.pi / 2) * torch.erf((seen[..., None] - knots) / step / 2**0.5)
        )
        energy = energy + torch.einsum("bf...k,fk->", integral, values)
    (expected,) = torch.autograd.grad(energy, z)
    torch.testing.assert_close(term(z), expected)


def plain_level(ndim, units, alpha, slope, regulariser, momentum=None):
    """A level whose experts copy, with phi(x) = slope x and regulariser x."""

    def copying(channels, slope):
        line = partial(PiecewiseLinear, region=(-100, 100), deviation=0.0, slope=slope)
        expert = FieldOfExperts(ndim, channels, 1, 3, line)
        torch.nn.init.zeros_(expert.kernels)
        expert.kernels.data[(slice(None), 0, *[1] * ndim)] = 1.0
        return expert

    return Level(
        [copying(1, slope)], [copying(ndim, regulariser)], units, (alpha, alpha), momentum
    ).double()


@pytest.mark.parametrize("shape", [(20, 26), (12, 16, 14)])
@DEGREES
def test_the_data_step_goes_down_the_squared_residual_along_the_right_axes(shape, degree):
    ndim = len(shape)
    fixed, moving = (smooth(shape, k, sigma=3.0).double() for k in (1, 2))
    grid = ControlGrid(shape, [4] * ndim, degree)
    control = torch.zeros(1, ndim, *grid.points, dtype=torch.double, requires_grad=True)
    energy = (ops.warp(moving, grid.dense(control)) - fixed).square().sum() / 2
    (slope,) = torch.autograd.grad(energy, control)
    _, moved = plain_level(ndim, 1, 0.01, 1.0, 0.0)(fixed, moving, torch.zeros_like(control), grid)
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
    grid = ControlGrid(shape, [4] * len(shape))
    control = torch.zeros(1, len(shape), *grid.points, dtype=torch.double)
    level = plain_level(len(shape), 6, 1.0, 1.0, 1e-4, momentum)
    fields, _ = level(fixed, moving, control, grid)
    energies = [(ops.warp(moving, u) - fixed).square().sum() for u in [0 * fields[0], *fields]]
    assert all(b < a for a, b in pairwise(energies))
    assert energies[-1] < 0.7 * energies[0]


@SMALL
@pytest.mark.parametrize("momentum", [None, 0.4])
def test_the_regulariser_s_steps_are_those_of_the_heavy_ball(shape, momentum):
    """On R(c) = 0.5 c alone the control values obey a recurrence of two terms."""
    grid = ControlGrid(shape, [3] * len(shape))
    start = torch.randn(1, len(shape), *grid.points, dtype=torch.double)
    level = plain_level(len(shape), 4, 0.2, 0.0, 0.5, momentum)
    fields, last = level(*smooth(shape, 1).double().expand(2, 1, 1, *shape), start, grid)
    before, now = 1.0, 1.0
    for u in fields:
        before, now = now, now - 0.2 * 0.5 * now + (momentum or 0) * (now - before)
        torch.testing.assert_close(u, now * grid.dense(start), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, now * start, atol=1e-5, rtol=1e-5)


@SMALL
def test_units_may_share_their_filters(shape):
    model = DIRVNet(len(shape), units=6, shared=3, filters=2)
    (level,) = model.levels
    assert (len(level.data), len(level.regularisers), len(level.steps)) == (2, 2, 6)
    seen = []
    for k, expert in enumerate(level.data):
        expert.register_forward_hook(lambda *_, k=k: seen.append(k))
    model(smooth(shape, 1), smooth(shape, 2))
    assert seen == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
@ACTIVATIONS
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_gradients_of_the_whole_network(shape, activation, momentum):
    learned = partial(activation, knots=5, deviation=0.3)
    model = DIRVNet(
        len(shape), levels=2, units=2, filters=2, data_kernel=3, regulariser_kernel=3,
        activation=learned, spacing=2, steps=(0.2, 0.4), momentum=momentum,
    ).double()  # fmt: skip
    fixed, moving = (smooth(shape, k).double() for k in (1, 2))
    names, values = zip(*model.named_parameters(), strict=True)

    def fields(*parameters):
        named = dict(zip(names, parameters, strict=True))
        return tuple(functional_call(model, named, (fixed, moving)))

    assert torch.autograd.gradcheck(fields, values, fast_mode=True)


def unrolled_case(shape, units=3):
    """A pair with truth, and the fields of two levels of ``units`` each."""
    ndim, half = len(shape), [-(-n // 2) for n in shape]
    fields = [2 * torch.randn(1, ndim, *grid) for grid in [half] * units + [[*shape]] * units]
    fixed, moving = smooth(shape, 1), smooth(shape, 2)
    truth = 4 * smooth(shape, 3, channels=ndim) - 2
    pair = Pair(
        fixed=fixed, moving=moving, spacing=torch.ones(1, ndim), name=["a"], displacement=truth
    )
    return pair, Registration(fields, ops.warp(moving, fields[-1]))


def distance(u, v):
    return (u - v).square().sum(1).sqrt().mean().item()


@SMALL
def test_the_last_unit_of_every_level_counts(shape):
    pair, out = unrolled_case(shape)
    half = resized(pair, out.fields[0].shape[2:])["displacement"]
    fine, coarse = distance(out.fields[-1], pair["displacement"]), distance(out.fields[2], half)
    term = losses.EndpointError()
    assert losses.Unrolled(term)(pair, out).item() == pytest.approx(
        (fine + 2 * coarse) / 2, rel=1e-5
    )
    assert losses.Unrolled(term, levels=1)(pair, out).item() == pytest.approx(fine, rel=1e-5)
    flat = losses.Unrolled(term, coarser=1.0)(pair, out).item()
    assert flat == pytest.approx((fine + coarse) / 2, rel=1e-5)


@SMALL
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_units_count_less_the_earlier_they_are(shape, temperature):
    pair, out = unrolled_case(shape)
    shares = np.exp(-temperature * np.array([2, 1, 0]))
    errors = [distance(u, pair["displacement"]) for u in out.fields[3:]]
    loss = losses.Unrolled(losses.EndpointError(), levels=1, temperature=temperature)
    expected = (shares / shares.sum()) @ errors
    assert loss(pair, out).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_rises_with_training_alone_and_is_kept():
    pair, out = unrolled_case((9, 11))
    loss = losses.Unrolled(losses.EndpointError(), temperature=0.5, heating=0.2, hottest=1.0)

    def temperature(loss):
        first, second = loss.shares(2)
        return math.log(second / first)

    loss.train()
    for step in range(4):
        assert temperature(loss) == pytest.approx(min(0.5 + 0.2 * step, 1.0))
        loss(pair, out)
    loss.eval()(pair, out)
    other = losses.Unrolled(losses.EndpointError(), temperature=0.5, heating=0.2, hottest=9.0)
    other.load_state_dict(loss.state_dict())
    assert temperature(other) == pytest.approx(0.5 + 0.2 * 4)


@SMALL
def test_an_unsupervised_term_sees_the_images_of_the_level(shape):
    pair, out = unrolled_case(shape)
    expected = 0.0
    for u in (out.fields[2], out.fields[5]):
        level = resized(pair, u.shape[2:])
        expected += (level["fixed"] - ops.warp(level["moving"], u)).square().mean().item() / 2
    loss = losses.Unrolled(losses.Similarity(similarity.mean_squares), coarser=1.0)
    assert loss(pair, out).item() == pytest.approx(expected, rel=1e-4)


def test_it_learns_to_register(composed):
    cfg = composed("train", "data=chessboard", "data.dataset.images.shape=24", "data.batch_size=4")
    model = DIRVNet(2, units=3, filters=8, steps=(0.05, 0.1))
    batch = next(iter(build(cfg.data).train_dataloader()))
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-2), losses.EndpointError()
    history = []
    for _ in range(30):
        error = loss(batch, registered(batch, model(batch["fixed"], batch["moving"])))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        history.append(error.item())
    assert history[-1] < 0.8 * history[0]


def test_potentials_are_the_integrals_of_activations():
    expert = FieldOfExperts(2, 2, 3, 3, partial(PiecewiseLinear, deviation=0.0, slope=2.0))
    x, phi, rho = dirvnet_experts.learned_functions(expert)
    np.testing.assert_allclose(phi, np.tile(2 * x, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(rho, np.tile(x**2, (3, 1)), atol=1e-3)


def test_the_smallest_gradients():
    values = torch.tensor([4.0, -1.0, 0.5, -3.0])
    assert dirvnet_experts.smallest(values).abs().sort().values.tolist() == [0.5, 1.0, 3.0]


def test_gradients_and_weights_are_told_by_kind():
    model = DIRVNet(2, levels=2, units=2, filters=3, momentum=0.5)
    model(smooth((12, 14), 1), smooth((12, 14), 2))[-1].sum().backward()
    sizes = {kind: len(values) for kind, values in dirvnet_experts.weights(model).items()}
    assert sizes == {
        "step sizes": 4,
        "momentum": 4,
        "data: filters": 4 * 3 * 49,
        "data: activations": 4 * 3 * 24,
        "regularisers: filters": 4 * 2 * 3 * 25,
        "regularisers: activations": 4 * 2 * 3 * 24,
    }
    assert {kind: len(values) for kind, values in dirvnet_experts.gradients(model).items()} == sizes
    assert all(slopes.any() for slopes in dirvnet_experts.gradients(model).values())


BATCH = {"images", "displacements", "vectors", "unit_images", "unit_displacements"}
LEARNED = ("filters", "activations", "potentials")
MODEL = {"weights", *(f"{term}_{what}" for term in dirvnet_experts.TERMS for what in LEARNED)}


@pytest.mark.parametrize(("shape", "known"), [((9, 11), False), ((7, 8, 9), True)])
def test_a_batch_is_drawn_with_and_without_the_truth(shape, known):
    pair, _ = unrolled_case(shape)
    if not known:
        del pair["displacement"]
    model = DIRVNet(len(shape), levels=2, units=2, filters=2)
    out = registered(pair, model(pair["fixed"], pair["moving"]))
    pages = report.of_batch(pair, out)
    assert set(pages) == BATCH
    for figure in pages.values():
        figure.set_layout_engine(None)  # which takes a second
        figure.canvas.draw()
    rows = 3 * len(shape) if known else len(shape)
    drawn = [a for a in pages["displacements"].axes if a.images and a.get_ylabel()]
    assert len(drawn) >= rows
    assert len(pages["vectors"].axes) == (3 if known else 1)


def test_pairs_of_two_sizes_are_not_put_beside_each_other():
    pairs = [{"fixed": torch.zeros(1, n, 5)} for n in (4, 6)]
    assert len(report.preview(pairs, 1)["fixed"]) == 1
    with pytest.raises(UserError, match="cases=1"):
        report.preview(pairs, 2)


TINY = [
    "data=chessboard", "model=dirvnet", "loss=dirvnet", "callbacks=dirvnet",
    "data.dataset.images.shape=20", "model.units=2", "model.filters=2", "data.dataset.size=4",
    "data.batch_size=2", "data.epoch_size=4", "trainer.accelerator=cpu", "trainer.devices=1",
    "trainer.enable_progress_bar=false", "trainer.max_epochs=2",
    "callbacks.units.every_n_epochs=2", "callbacks.units.cases=2",
]  # fmt: skip


def judge(folder):
    """A trainer watched by all that evaluate.py has it watched by."""
    told = {"folder": str(folder), "pictures": 1, "run": None, "submission": None, "allow": []}
    cfg = OmegaConf.create(told | {"callbacks": OmegaConf.load(f"{CONF}/callbacks/evaluate.yaml")})
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=callbacks(cfg)
    )


@pytest.fixture
def parts(composed, tmp_path):
    """A configuration, and the module and data made of it."""
    cfg = composed("train", *TINY)
    cfg.folder = str(tmp_path)
    return cfg, build(cfg.module), build(cfg.data)


def test_a_run_is_shown_in_tensorboard_and_as_files(parts, tmp_path):
    (cfg, module, data), folder = parts, tmp_path
    (folder / "config.yaml").write_text("ndim: 2", encoding="utf-8")
    watcher = build(cfg.callbacks.units)
    build(cfg.trainer, callbacks=[watcher], enable_checkpointing=False).fit(module, data)
    table = np.genfromtxt(folder / "levels.csv", delimiter=",", names=True)
    assert table["step"].tolist() == [0, 2, 4]
    assert (table["epe_vox"] > 0).all()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    groups = BATCH | MODEL | {"smallest_gradients", "level_losses"}
    assert {tag.split("/")[-1] for tag in events.Tags()["images"]} == groups
    assert "configuration/text_summary" in events.Tags()["tensors"]
    task = Pictures(str(folder / "pictures"), str(folder / "levels.csv"), cases=2)
    task.run(judge(folder), module, data.one_by_one("test"))
    assert {path.stem for path in (folder / "pictures").glob("*.png")} == groups


def test_a_model_is_judged_beside_the_optimum(parts, tmp_path, capsys):
    _, module, data = parts
    Optimum().run(judge(tmp_path), module, data.one_by_one("test"))
    told = capsys.readouterr().out.split("Endpoint error")[1]
    still, own, best, ratio = (float(x) for x in re.findall(r"\d+\.\d+", told))
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    for name, value in (("identity", still), ("dirvnet", own), ("optimum", best)):
        assert summary[name]["epe_vox"]["mean"] == pytest.approx(value, abs=1e-3)
    assert best < min(own, still)
    assert ratio == pytest.approx(own / best, rel=0.01)
    with np.load(tmp_path / "gallery" / "best.npz") as kept:
        assert str(kept["method"]) == "dirvnet"


def test_a_model_is_judged_after_every_pass(parts, tmp_path):
    _, module, data = parts
    data, trainer = data.one_by_one("test"), judge(tmp_path)
    Passes(times=3).run(trainer, module, data)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    names = ["identity", "dirvnet", "dirvnet x 2", "dirvnet x 3", "dirvnet until it stops"]
    assert [name for name in summary if name != "cases"] == names
    pair = next(iter(data))
    module.eval()
    twice = module.model.eval()(pair["fixed"], module(pair).warped.detach())[-1]
    total = ops.compose(twice, module(pair).displacement)
    (table,) = (c for c in trainer.callbacks if isinstance(c, CaseTable))
    judged = {(record["case"], record["method"]): record["epe_vox"] for record in table.records}
    second = judged[pair["name"][0], "dirvnet x 2"]
    assert second == pytest.approx(distance(total, pair["displacement"]), rel=1e-3)


def test_only_models_of_control_points_and_true_displacements_have_an_optimum(parts, tmp_path):
    _, module, data = parts
    data = data.one_by_one("test")
    module.score = lambda pair, u: {"rmse": 0.0}
    with pytest.raises(UserError, match="metrics=strict"):
        Optimum().run(judge(tmp_path), module, data)
    module.model = Identity()
    with pytest.raises(UserError, match="does not say which fields it can represent"):
        Optimum().run(judge(tmp_path), module, data)
