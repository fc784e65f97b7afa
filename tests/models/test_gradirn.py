"""GraDIRN's options, its energy curve and what it does with more steps than it was trained with."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.func import functional_call

from regnet_lab import ops
from regnet_lab.config.instantiate import build
from regnet_lab.errors import UserError
from regnet_lab.evaluation.iteration_sweep import unrolled
from regnet_lab.evaluation.setup import judged_module
from regnet_lab.models import Diffeomorphic, GraDIRN, SliceWise
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import registered
from regnet_lab.types import Pair
from regnet_lab.visualization import iterations
from regnet_lab.visualization.iterations import step_curve
from tests.helpers import CONF

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
TINY = pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])
ENERGIES = pytest.mark.parametrize("measure", ["mean_squares", "global_ncc", "local_ncc"])


def images(shape, batch=1, seed=0):
    """Two smooth images, their intensities between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, batch, 1, *[(n + 1) // 2 for n in shape], generator=generator)
    return [ops.resize(image, shape) for image in coarse]


def pair_of(shape, batch=1):
    fixed, moving = images(shape, batch)
    names = [f"case{k}" for k in range(batch)]
    return Pair(fixed=fixed, moving=moving, spacing=torch.ones(batch, len(shape)), name=names)


def made(shape, seed=0, **options):
    torch.manual_seed(seed)
    return GraDIRN(len(shape), **{"flow_deviation": 0.05, "channels": 4, **options})


# --- gradients


@TINY
@pytest.mark.parametrize("measure", ["mean_squares", "global_ncc"])
def test_a_whole_iteration_has_the_right_second_derivatives(shape, measure):
    options = {"layers": 2, "channels": 2, "flow_deviation": 0.3, "tau_scale": 3.0}
    model = made(shape, energy=getattr(similarity, measure), blocks=(1,), repeats=(1,), **options)
    model = model.double()
    block = model.levels[0][0]
    fixed, moving = (image.double() for image in images(shape))
    generator = torch.Generator().manual_seed(1)
    u = 0.6 * torch.rand(1, len(shape), *shape, dtype=torch.float64, generator=generator) - 0.3
    names, values = zip(*block.named_parameters(), strict=True)

    class Once(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, u, fixed, moving):
            return model.iterate(self.block, fixed, moving, u)

    once = Once()

    def iterate(u, fixed, moving, *parameters):
        named = {f"block.{name}": p for name, p in zip(names, parameters, strict=True)}
        return functional_call(once, named, (u, fixed, moving))

    given = [x.clone().requires_grad_() for x in (u, fixed, moving)]
    assert torch.autograd.gradgradcheck(iterate, (*given, *values), fast_mode=True)


@SMALL
@ENERGIES
def test_checkpointing_changes_no_gradient(shape, measure):
    found = []
    for checkpointing in (False, True):
        model = made(shape, energy=getattr(similarity, measure), checkpointing=checkpointing)
        fields = model(*images(shape, batch=2))
        torch.stack([u.square().mean() for u in fields]).sum().backward()
        found.append([fields[-1].detach(), *(p.grad for p in model.parameters())])
    for plain, saved in zip(*found, strict=True):
        torch.testing.assert_close(plain, saved, rtol=1e-5, atol=1e-7)
        assert plain.abs().max() > 0


@SMALL
def test_checkpointing_keeps_less_for_the_way_back(shape):
    kept = []
    for checkpointing in (False, True):
        sizes = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        model = made(shape, checkpointing=checkpointing)
        fixed, moving = images(shape)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(fixed, moving)
        kept.append(sum(sizes))
    assert kept[1] < 0.2 * kept[0]


def test_training_with_checkpointing_ends_where_training_without_does():
    ends = []
    for checkpointing in (False, True):
        model = made((9, 11), checkpointing=checkpointing)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for step in range(5):
            fixed, moving = images((9, 11), batch=2, seed=step)
            loss = similarity.mean_squares(fixed, ops.warp(moving, model(fixed, moving)[-1])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    for plain, saved in zip(*ends, strict=True):
        torch.testing.assert_close(plain, saved, rtol=0, atol=1e-5)


# --- variants


@SMALL
def test_shared_levels_have_the_weights_of_one(shape):
    separate, shared = made(shape), made(shape, shared=True)
    count = [sum(p.numel() for p in model.parameters()) for model in (separate, shared)]
    assert count[0] == 3 * count[1]
    torch.manual_seed(0)
    shared.load_state_dict({k: v + 0.01 for k, v in shared.state_dict().items()})
    first, *others = (level[0].regulariser[0].weight for level in shared.levels)
    assert all(weight is first for weight in others)
    same = made(shape)
    same.load_state_dict(shared.state_dict())
    for a, b in zip(shared(*images(shape)), same(*images(shape)), strict=True):
        assert torch.equal(a, b)


@SMALL
@pytest.mark.parametrize("repeats", [(3,), (2, 3)])
def test_without_a_learned_step_it_is_gradient_descent(shape, repeats):
    blocks = (1,) * len(repeats)
    model = made(shape, blocks=blocks, repeats=repeats, layers=0, tau=0.9, tau_scale=5.0)
    assert [name.split(".")[-1] for name, _ in model.named_parameters()] == ["tau"] * len(repeats)
    fixed, moving = images(shape)
    u = torch.zeros(1, len(shape), *[-(-n // 2 ** (len(repeats) - 1)) for n in shape])
    expected = []
    for level, count in enumerate(repeats):
        grid = [-(-n // 2 ** (len(repeats) - 1 - level)) for n in shape]
        f, m = ops.resize(fixed, grid), ops.resize(moving, grid)
        u = ops.resize_field(u, grid)
        for _ in range(count):
            u = u.detach().requires_grad_()
            (slope,) = torch.autograd.grad((f - ops.warp(m, u)).square().sum(), u)
            u = u - 0.9 / (sum(repeats) + 1) * 5.0 * slope
            expected.append(u)
    for a, b in zip(model.eval()(fixed, moving), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["gradirn", "gradirn_ncc", "gradirn_lncc", "gradirn_mi"])
@pytest.mark.parametrize("shape", [(24, 28), (14, 16, 12)])
def test_the_step_sizes_of_the_yamls_lower_their_energies(name, shape, composed):
    cfg = composed("train", "~data", f"model={name}", f"+ndim={len(shape)}", "model.layers=0")
    model = instantiate(cfg.model, _convert_="all").eval()
    fixed, _ = images(shape)
    fixed = ops.resize(ops.resize(fixed, [n // 2 for n in shape]), shape)
    shift = torch.full((1, len(shape), *shape), 0.8)
    moving = ops.warp(fixed, shift)
    last = model(fixed, moving)[-1]
    before, after = model.energy(fixed, moving), model.energy(fixed, ops.warp(moving, last))
    assert after < before
    assert last.abs().max() < 6


@pytest.mark.parametrize(
    ("option", "named"),
    [({"images": "both"}, "explicit"), ({"draw": [0, 3]}, "draw"), ({"draw": [4, 3]}, "draw")],
)
def test_an_option_that_is_none_is_a_mistake_of_the_users(option, named):
    with pytest.raises(UserError, match=named):
        GraDIRN(2, **option)


# --- the number of steps


@SMALL
def test_unrolling_multiplies_the_iterations_inside_wrappers_and_is_undone(shape):
    inner = made(shape, repeats=(1, 2, 3)).eval()
    model = SliceWise(Diffeomorphic(inner), ndim=len(shape))
    fixed, moving = images(shape)
    once = model(fixed, moving)
    assert len(once) == 6
    for factor, count in [(1, 6), (2, 12), (0.5, 1 + 1 + 2), (1.5, 2 + 3 + 4)]:
        with unrolled(model, factor):
            assert len(model(fixed, moving)) == count
    with unrolled(inner, 1, halvings=4):
        assert inner.halvings == 4
    assert inner.halvings == 0
    with unrolled(inner, 2):
        longer = inner(fixed, moving)
    assert torch.equal(longer[0], inner(fixed, moving)[0])
    assert torch.equal(model(fixed, moving)[-1], once[-1])
    with pytest.raises(UserError, match="iterate"), unrolled(torch.nn.Linear(1, 1), 2):
        pass


def test_iterations_are_drawn_in_training_alone_and_go_on_after_a_restart():
    fixed, moving = images((9, 11))
    model = made((9, 11), draw=[1, 4], blocks=(1, 1), repeats=(3, 3))
    counts = [len(model(fixed, moving)) for _ in range(12)]
    assert set(counts) <= set(range(2, 9))
    assert len(set(counts)) > 3
    assert len(model.eval()(fixed, moving)) == 6
    again = made((9, 11), draw=[1, 4], blocks=(1, 1), repeats=(3, 3))
    first = [len(again(fixed, moving)) for _ in range(5)]
    resumed = made((9, 11), seed=1, draw=[1, 4], blocks=(1, 1), repeats=(3, 3))
    resumed.load_state_dict(again.state_dict())
    assert first + [len(resumed(fixed, moving)) for _ in range(7)] == counts
    assert "passes" not in made((9, 11)).state_dict()


@SMALL
@ENERGIES
def test_halving_never_lets_the_energy_of_a_case_rise(shape, measure):
    measure = getattr(similarity, measure)
    options = {"energy": measure, "tau": 5.0, "tau_scale": 40.0, "blocks": (1,), "repeats": (6,)}
    fixed, moving = images(shape, batch=3)

    def course(model):
        fields = [torch.zeros_like(moving.expand(-1, len(shape), *shape)), *model(fixed, moving)]
        return torch.stack([measure(fixed, ops.warp(moving, u)) for u in fields]).detach()

    plain = course(made(shape, **options).eval())
    halved = course(made(shape, **options, halvings=12).eval())
    assert (plain.diff(dim=0) > 0).any()
    assert (halved.diff(dim=0) <= 0).all()
    assert (halved[-1] < halved[0]).all()


def test_a_step_is_halved_as_often_as_it_takes_and_left_out_after_that():
    model = GraDIRN(2, energy=lambda fixed, warped: warped.flatten(1).mean(1), halvings=3).eval()
    moving = (torch.arange(9.0) - 4).square().view(1, 1, 9, 1).expand(2, 1, 9, 9) / 16
    u = torch.zeros(2, 2, 9, 9)
    step = torch.zeros(2, 2, 9, 9)
    step[:, 0, 6] = torch.tensor([5.0, 90.0]).view(2, 1)  # the lowest point is two voxels away
    taken = model.shortened(moving, moving, u, step)
    assert taken[0, 0, 6, 0] == 2.5
    assert taken[1].abs().max() == 0


# --- the energy curve


@SMALL
def test_the_energy_curve_is_what_a_plain_loop_finds(shape):
    pair = pair_of(shape, batch=2)
    model = made(shape, repeats=(1, 2, 1)).eval()
    with iterations.learned_steps(model) as steps:
        fields = registered(pair, model(pair["fixed"], pair["moving"])).fields
    rows = iterations.energies(pair, fields, similarity.mean_squares)
    rows = iterations.with_learned_steps(rows, steps)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    assert "learned_step" not in rows[0]
    fixed, moving = pair["fixed"], pair["moving"]
    assert rows[0]["energy"] == pytest.approx(float((fixed - moving).square().mean()))
    for row, u in zip(rows[1:], fields, strict=True):
        assert row["level"] == " x ".join(map(str, u.shape[2:]))
        f, m = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
        assert row["level_energy"] == pytest.approx(
            float((f - ops.warp(m, u)).square().mean().detach())
        )
        whole = ops.resize_field(u, shape)
        error = (fixed - ops.warp(moving, whole)).square().mean()
        assert row["energy"] == pytest.approx(error.item())
        slopes = np.stack(np.gradient(whole.detach().numpy(), axis=range(2, whole.ndim)))
        assert row["roughness"] == pytest.approx((slopes**2).sum((0, 2)).mean(), rel=1e-4)

    u = torch.zeros_like(fields[0])
    block = model.levels[0][0]
    f, m = (ops.resize(image, u.shape[2:]) for image in (fixed, moving))
    learned = block.regulariser(torch.cat([u, f, m], 1))
    assert rows[1]["learned_step"] == pytest.approx(float(learned.square().sum(1).mean().sqrt()))


def test_learned_steps_of_chunks_are_averaged_and_others_ignored():
    rows = [{"iteration": k} for k in range(3)]
    found = iterations.with_learned_steps(rows, [1.0, 2.0, 3.0, 6.0])
    assert [row.get("learned_step") for row in found] == [None, 2.0, 4.0]
    assert iterations.with_learned_steps(rows, []) == rows
    assert iterations.with_learned_steps(rows, [1.0]) == rows


def test_the_energy_is_the_models_own():
    model = SliceWise(GraDIRN(2, energy=similarity.global_ncc))
    assert iterations.own_energy(model) is similarity.global_ncc
    assert iterations.own_energy(torch.nn.Identity()) is similarity.mean_squares


def test_curves_are_means_over_cases():
    rows = [
        {"method": "a", "case": case, "iteration": k, "level": "2 x 2", "energy": value}
        for case, values in (("x", [4.0, 2.0]), ("y", [2.0, 0.0]))
        for k, value in enumerate(values)
    ]
    curve = iterations.mean_curve(rows)
    assert curve["energy"].tolist() == [3.0, 1.0]
    assert curve["cases"].tolist() == [2, 2]
    records = [
        {"iterations": n, "dice": d, "dice/1": 0.0} for n, d in ((9, 0.5), (9, 0.7), (18, 1))
    ]
    steps = step_curve(records, "m")
    assert steps["dice"].tolist() == pytest.approx([0.6, 1.0])
    assert steps["dice_std"].tolist() == pytest.approx([0.1, 0.0])
    assert "dice/1" not in steps


@pytest.mark.parametrize("model", ["gradirn", "voxelmorph"])
@pytest.mark.parametrize("callback", ["energy", "panel"])
def test_validation_puts_pictures_on_tensorboard_at_the_first_and_every_nth(
    callback, model, composed, tmp_path
):
    cfg = composed(
        "train", f"model={model}", "ndim=2", "data.dataset.shape=[16,18]", "data.dataset.size=2",
        "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=2", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", f"callbacks.{callback}.every_n=2",
    )  # fmt: skip
    cfg.folder = str(tmp_path)
    trainer = build(
        cfg.trainer, callbacks=[build(cfg.callbacks[callback])], enable_checkpointing=False
    )
    trainer.fit(build(cfg.module), build(cfg.data))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    several = {"energy": {"val/energy"}, "panel": {"val/fields"}}[callback]  # of several fields
    always = {"energy": set(), "panel": {"val/panel"}}[callback]
    shown = set(events.Tags()["images"])
    assert shown == (always if model == "voxelmorph" else always | several)
    for tag in shown:
        assert [event.step for event in events.Images(tag)] == [4, 12]


# --- as commands


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run's folder with weights never trained, as training would leave it."""

    def make(*overrides, seed=0):
        folder = tmp_path_factory.mktemp("run")
        small = ["ndim=2", "data.dataset.shape=[20,17]", "data.dataset.size=3"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*small, *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        torch.manual_seed(seed)
        weights = {"state_dict": build(cfg.module).state_dict()}
        OmegaConf.set_struct(cfg, False)
        cfg.pop("hydra")
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        (folder / "checkpoints").mkdir()
        torch.save(weights, folder / "checkpoints" / "best.ckpt")
        return folder

    return make


def test_the_task_steps_writes_a_curve_and_evaluation_the_energies(run_of, command):
    run = run_of("model=gradirn", "model.channels=4")
    done = command(
        "evaluate.py", f"run={run}", "task=steps", "task.factors=[1,2]", "pictures=1",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = run / "evaluation" / "same"
    curve = pd.read_csv(folder / "steps.csv")
    assert curve["iterations"].tolist() == [9, 18]
    cases = pd.read_csv(folder / "cases.csv")
    assert list(cases["method"].unique()) == ["identity", "gradirn x1", "gradirn x2"]
    for count, method in ((9, "gradirn x1"), (18, "gradirn x2")):
        row = curve[curve["iterations"] == count].iloc[0]
        assert row["dice"] == pytest.approx(cases[cases["method"] == method]["dice"].mean())
        table = pd.read_csv(folder / "energy.csv")
        own = table[table["method"] == method]
        assert own["iteration"].tolist() == list(range(count + 1))
        assert own["energy"].iloc[-1] == pytest.approx(row["energy"])
    assert (folder / "steps.png").stat().st_size > 0
    assert (folder / "energy.png").stat().st_size > 0
    assert len(list((folder / "pictures").glob("*_iterations.png"))) == 1


def test_a_run_of_slices_judges_volumes(run_of, composed):
    run = run_of("model=gradirn", "model.channels=4")
    module = judged_module(composed("evaluate", f"run={run}", "data=cardiac"))
    assert isinstance(module.model, SliceWise)
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in module.model.model.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    plain = judged_module(composed("evaluate", f"run={run}", "data=brain2d"))
    assert isinstance(plain.model, GraDIRN)
    fresh = judged_module(composed("evaluate", "model=gradirn", "data=cardiac"))
    assert isinstance(fresh.model, SliceWise)


def test_an_evaluation_of_several_runs_ends_in_one_table_though_one_fails(
    run_of, command, tmp_path
):
    runs = [
        run_of("model=gradirn", "model.channels=4", f"data.fraction={f}", seed=k)
        for k, f in enumerate((0.5, 1))
    ]
    done = command(
        "evaluate.py", "-m", f"run={runs[0]},nowhere,{runs[1]}", "data=synthetic,chessboard",
        "++ndim=2", "trainer.limit_test_batches=2", "against=data.fraction", "pictures=0",
        "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "nowhere" in done.stderr
    sweep = tmp_path / "sweep"
    table = pd.read_csv(sweep / "summary.csv")
    names = [run.name for run in runs]
    assert [(s, t) for s, t in zip(table["source"], table["target"], strict=True)] == [
        ("identity", "synthetic"), ("identity", "chessboard"),
        *((name, target) for name in names for target in ("synthetic", "chessboard")),
    ]  # fmt: skip
    summary = json.loads((sweep / "0" / "summary.json").read_text(encoding="utf-8"))
    assert table["rmse_mean"].iloc[2] == pytest.approx(summary["gradirn"]["rmse"]["mean"])
    text = (sweep / "summary.md").read_text(encoding="utf-8")
    assert "nowhere on synthetic failed" in text
    curve = pd.read_csv(sweep / "curve.csv")
    assert set(curve["data.fraction"]) == {0.5, 1.0}
    for name in ("shift.png", "curve.png", "energy.png", "energy.csv"):
        assert (sweep / name).stat().st_size > 0, name
