"""GraDIRN: options, energy curve, more iterations than in training."""

import pytest
import torch
from hydra.utils import instantiate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.func import functional_call

from regnet_lab import ops
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.evaluation.iteration_sweep import override_iterations
from regnet_lab.models import DiffeomorphicModel, GraDIRN, SliceWiseModel
from regnet_lab.ops import similarity

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


TINY = pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)])


ENERGIES = pytest.mark.parametrize("measure", ["mean_squares", "global_ncc", "local_ncc"])


def images(shape, batch=1, seed=0):
    """Two smooth images, their intensities between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, batch, 1, *[(n + 1) // 2 for n in shape], generator=generator)
    return [ops.resize(image, shape) for image in coarse]


def made(shape, seed=0, **options):
    torch.manual_seed(seed)
    return GraDIRN(len(shape), **{"flow_init_std": 0.05, "channels": 4, **options})


@TINY
@pytest.mark.parametrize("measure", ["mean_squares", "global_ncc"])
def test_an_iteration_passes_gradcheck(shape, measure):
    options = {"layers": 2, "channels": 2, "flow_init_std": 0.3, "step_size_scale": 3.0}
    model = made(
        shape, energy=getattr(similarity, measure), blocks=(1,), iterations=(1,), **options
    )
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
            return model.descend(self.block, fixed, moving, u)

    once = Once()

    def iterate(u, fixed, moving, *parameters):
        named = {f"block.{name}": p for name, p in zip(names, parameters, strict=True)}
        return functional_call(once, named, (u, fixed, moving))

    inputs = [x.clone().requires_grad_() for x in (u, fixed, moving)]
    assert torch.autograd.gradgradcheck(iterate, (*inputs, *values), fast_mode=True)


@SMALL
@ENERGIES
def test_checkpointing_changes_no_gradient(shape, measure):
    results = []
    for checkpointing in (False, True):
        model = made(
            shape, energy=getattr(similarity, measure), gradient_checkpointing=checkpointing
        )
        fields = model(*images(shape, batch=2))
        torch.stack([u.square().mean() for u in fields]).sum().backward()
        results.append([fields[-1].detach(), *(p.grad for p in model.parameters())])
    for stored, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(stored, recomputed, rtol=1e-5, atol=1e-7)
        assert stored.abs().max() > 0


@SMALL
def test_checkpointing_stores_less_for_the_backward_pass(shape):
    stored_bytes = []
    for checkpointing in (False, True):
        sizes = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        model = made(shape, gradient_checkpointing=checkpointing)
        fixed, moving = images(shape)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(fixed, moving)
        stored_bytes.append(sum(sizes))
    assert stored_bytes[1] < 0.2 * stored_bytes[0]


def test_training_with_and_without_checkpointing_gives_equal_weights():
    ends = []
    for checkpointing in (False, True):
        model = made((9, 11), gradient_checkpointing=checkpointing)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for step in range(5):
            fixed, moving = images((9, 11), batch=2, seed=step)
            loss = similarity.mean_squares(fixed, ops.warp(moving, model(fixed, moving)[-1])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append([p.detach() for p in model.parameters()])
    for stored, recomputed in zip(*ends, strict=True):
        torch.testing.assert_close(stored, recomputed, rtol=0, atol=1e-5)


@SMALL
def test_shared_levels_have_the_weights_of_one(shape):
    separate, shared = made(shape), made(shape, share_levels=True)
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
    model = made(
        shape, blocks=blocks, iterations=repeats, layers=0, step_size=0.9, step_size_scale=5.0
    )
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
    [
        ({"regulariser_input": "both"}, "explicit"),
        ({"train_iterations": [0, 3]}, "train_iterations"),
        ({"train_iterations": [4, 3]}, "train_iterations"),
    ],
)
def test_invalid_options_raise_a_user_error(option, named):
    with pytest.raises(UserError, match=named):
        GraDIRN(2, **option)


@SMALL
def test_overridden_iterations_apply_inside_wrappers_and_are_restored(shape):
    inner = made(shape, iterations=(1, 2, 3)).eval()
    model = SliceWiseModel(DiffeomorphicModel(inner), ndim=len(shape))
    fixed, moving = images(shape)
    once = model(fixed, moving)
    assert len(once) == 6
    for factor, count in [(1, 6), (2, 12), (0.5, 1 + 1 + 2), (1.5, 2 + 3 + 4)]:
        with override_iterations(model, factor):
            assert len(model(fixed, moving)) == count
    with override_iterations(inner, 1, line_search_steps=4):
        assert inner.line_search_steps == 4
    assert inner.line_search_steps == 0
    with override_iterations(inner, 2):
        longer = inner(fixed, moving)
    assert torch.equal(longer[0], inner(fixed, moving)[0])
    assert torch.equal(model(fixed, moving)[-1], once[-1])
    with pytest.raises(UserError, match="iterate"), override_iterations(torch.nn.Linear(1, 1), 2):
        pass


def test_iterations_are_drawn_in_training_only_and_continue_after_resuming():
    fixed, moving = images((9, 11))
    model = made((9, 11), train_iterations=[1, 4], blocks=(1, 1), iterations=(3, 3))
    counts = [len(model(fixed, moving)) for _ in range(12)]
    assert set(counts) <= set(range(2, 9))
    assert len(set(counts)) > 3
    assert len(model.eval()(fixed, moving)) == 6
    again = made((9, 11), train_iterations=[1, 4], blocks=(1, 1), iterations=(3, 3))
    first = [len(again(fixed, moving)) for _ in range(5)]
    resumed = made((9, 11), seed=1, train_iterations=[1, 4], blocks=(1, 1), iterations=(3, 3))
    resumed.load_state_dict(again.state_dict())
    assert first + [len(resumed(fixed, moving)) for _ in range(7)] == counts
    assert "passes" not in made((9, 11)).state_dict()


@SMALL
@ENERGIES
def test_line_search_never_increases_the_energy_of_a_case(shape, measure):
    measure = getattr(similarity, measure)
    options = {
        "energy": measure,
        "step_size": 5.0,
        "step_size_scale": 40.0,
        "blocks": (1,),
        "iterations": (6,),
    }
    fixed, moving = images(shape, batch=3)

    def compute_energies(model):
        fields = [torch.zeros_like(moving.expand(-1, len(shape), *shape)), *model(fixed, moving)]
        return torch.stack([measure(fixed, ops.warp(moving, u)) for u in fields]).detach()

    fixed_step = compute_energies(made(shape, **options).eval())
    line_search = compute_energies(made(shape, **options, line_search_steps=12).eval())
    assert (fixed_step.diff(dim=0) > 0).any()
    assert (line_search.diff(dim=0) <= 0).all()
    assert (line_search[-1] < line_search[0]).all()


def test_line_search_halves_steps_and_finally_skips_them():
    model = GraDIRN(
        2, energy=lambda fixed, warped: warped.flatten(1).mean(1), line_search_steps=3
    ).eval()
    moving = (torch.arange(9.0) - 4).square().view(1, 1, 9, 1).expand(2, 1, 9, 9) / 16
    u = torch.zeros(2, 2, 9, 9)
    step = torch.zeros(2, 2, 9, 9)
    step[:, 0, 6] = torch.tensor([5.0, 90.0]).view(2, 1)  # the lowest point is two voxels away
    taken = model.search_line(moving, moving, u, step)
    assert taken[0, 0, 6, 0] == 2.5
    assert taken[1].abs().max() == 0


@pytest.mark.parametrize("model", ["gradirn", "voxelmorph"])
@pytest.mark.parametrize("callback", ["energy_curve", "validation_figure"])
def test_validation_logs_figures_to_tensorboard_at_the_first_and_every_nth(
    callback, model, composed, tmp_path
):
    cfg = composed(
        "train", f"model={model}", "ndim=2", "data.dataset.shape=[16,18]",
        "data.dataset.num_pairs=2",
        "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=2", "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false", f"callbacks.{callback}.every_n_validations=2",
    )  # fmt: skip
    cfg.output_dir = str(tmp_path)
    trainer = instantiate_config(
        cfg.trainer,
        callbacks=[instantiate_config(cfg.callbacks[callback])],
        enable_checkpointing=False,
    )
    trainer.fit(instantiate_config(cfg.module), instantiate_config(cfg.data))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    several = {"energy_curve": {"val/energy"}, "validation_figure": {"val/fields"}}[
        callback
    ]  # of several fields
    always = {"energy_curve": set(), "validation_figure": {"val/panel"}}[callback]
    shown = set(events.Tags()["images"])
    assert shown == (always if model == "voxelmorph" else always | several)
    for tag in shown:
        assert [event.step for event in events.Images(tag)] == [4, 12]
