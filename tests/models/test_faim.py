"""FAIM and what was published with it: refinement, alternation, affine maps in front, ways back."""

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn

from regnet_lab import losses, ops
from regnet_lab.config.instantiate import build
from regnet_lab.errors import UserError
from regnet_lab.models import FAIM, Affine, Chain, Refined
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import registered, returned, swapped
from regnet_lab.training.callbacks import Alternation
from regnet_lab.training.lr_schedulers import InverseTime
from regnet_lab.training.module import RegistrationModule
from regnet_lab.types import Pair

PAPER = {"kernels": (7, 5, 3, 2), "depth": 4}
SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def images(shape, batch=1):
    return torch.rand(2, batch, 1, *shape, generator=torch.Generator().manual_seed(1))


def pair_of(shape, batch=1, **more):
    fixed, moving = images(shape, batch)
    spacing = torch.ones(batch, len(shape))
    return Pair(fixed=fixed, moving=moving, spacing=spacing, name=["a"] * batch, **more)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("ndim", "settings", "parameters"),
    [(3, {}, 233_683), (3, PAPER, 179_787), (2, {}, 72_818), (2, PAPER, 60_762)],
)
def test_faim_has_the_published_sizes(ndim, settings, parameters):
    assert count(FAIM(ndim, **settings)) == parameters


def original(model, images, end):
    """The published network for its own sizes: pads written out, ``end`` (before which addition the
    one zero goes in) as in the two weight files.
    """
    conv, up = (
        (F.conv2d, F.conv_transpose2d) if images.ndim == 4 else (F.conv3d, F.conv_transpose3d)
    )

    def padded(x, before, after):
        return F.pad(x, (before, after) * (x.ndim - 2))

    def rectified(x, layer):
        slope = layer.weight.view(1, -1, *[1] * (x.ndim - 2))
        return torch.where(x > 0, x, slope * x)

    branches = []
    for branch, sides in zip(
        model.inception.branches, [(5, 5), (3, 3), (2, 2), (0, 1)], strict=True
    ):
        branches.append(conv(padded(images, *sides), branch[1].weight, branch[1].bias))
    z11 = rectified(torch.cat(branches, 1), model.inception.rectifier)
    z12 = rectified(conv(z11, *model.to_half[0].parameters(), stride=2), model.to_half[1])
    wide, (strided, rectifier) = model.to_quarter
    z22 = conv(padded(z12, 1, 1), wide.weight, wide.bias)
    z22 = rectified(conv(z22, strided.weight, strided.bias, stride=2), rectifier)
    z22 = z22 + conv(padded(z22, 0, 1), *model.bottom[1].parameters())
    steps = zip(
        (model.from_quarter, model.from_half), (z12, z11), (end == 2, end == 1), strict=True
    )
    x = z22
    for (grow, layer, rectifier), skip, short in steps:
        x = up(x, grow.weight, grow.bias, stride=2)
        x = rectified(conv(padded(x, 1, 1), layer.weight, layer.bias), rectifier)
        x = (padded(x, 0, 1) if short else x) + skip
    return conv(padded(x, 1, 1), model.flow.weight, model.flow.bias)


@pytest.mark.parametrize(
    ("shape", "end"),
    [((16, 20), 1), ((16, 12, 20), 1), ((13, 13), 2), ((9, 13, 9), 2), ((11, 19), 0)],
)
def test_faim_is_the_original_on_the_original_s_sizes(shape, end):
    """144 and 180 miss one voxel at the last addition (end 1), 91 and 109 at the first (end 2)."""
    model = FAIM(len(shape), flow_deviation=0.1).double()
    for layer in model.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.1, 0.5)
        elif getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias, std=0.1)
    fixed, moving = images(shape).double()
    expected = original(model, torch.cat([fixed, moving], 1), end)
    torch.testing.assert_close(model(fixed, moving)[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(3, 8), (1, 5), (4, 9, 7)])
def test_faim_takes_images_smaller_than_its_strides(shape):
    (u,) = FAIM(len(shape))(*images(shape))
    assert u.shape == (1, len(shape), *shape)
    wide = [
        F.pad(image, [s for n in reversed(shape) for s in (0, max(7 - n, 0))])
        for image in images(shape)
    ]
    torch.manual_seed(0)
    model = FAIM(len(shape))
    crop = (..., *[slice(n) for n in shape])
    assert torch.equal(model(*images(shape))[0], model(*wide)[0][crop])


@SMALL
def test_an_affine_network_gives_the_field_of_its_matrix(shape):
    ndim = len(shape)
    model = Affine(ndim, down=(4, 8), deviation=0.05)
    fixed, moving = images(shape, batch=2)
    (u,) = model(fixed, moving)
    matrix = model.matrix(fixed, moving)
    x = ops.identity_grid(shape, u)
    linear = torch.einsum("bij,j...->bi...", matrix[:, :-1, :-1], x[0])
    shift = matrix[:, :-1, -1].view(2, ndim, *[1] * ndim)
    torch.testing.assert_close(x + u, linear + shift)
    assert matrix[:, -1].tolist() == [[0.0] * ndim + [1.0]] * 2
    assert u.abs().amax(dim=tuple(range(1, ndim + 2))).min() > 0.01
    assert not torch.equal(u[0], u[1])


@SMALL
def test_an_affine_network_turns_and_moves_about_the_centre(shape):
    ndim = len(shape)
    model = Affine(ndim, down=(4,))
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.view(ndim, ndim + 1)[0, 1] = 0.1  # shears axis 0 along axis 1
        model.head.bias.view(ndim, ndim + 1)[1, -1] = 0.5  # half of half the longest side
    (u,) = model(*images(shape))
    along = (torch.arange(shape[1]) - (shape[1] - 1) / 2) * 0.1
    expected = torch.zeros(ndim, *shape)
    expected[0] = along.view(-1, *[1] * (ndim - 2))
    expected[1] = max(shape) / 4
    torch.testing.assert_close(u[0], expected, atol=1e-5, rtol=1e-5)


def slopes_ahead(u):
    """Forward differences du_i/dk at [i][k] on the grid without each axis's last voxel, by hand."""
    ndim = u.shape[1]
    here = [slice(None, -1)] * ndim
    ahead = [
        [slice(1, None) if a == k else slice(None, -1) for a in range(ndim)] for k in range(ndim)
    ]
    return [[u[(0, i, *at)] - u[(0, i, *here)] for at in ahead] for i in range(ndim)]


def minors(s, typo=False):
    """The determinant as the code expands it, with the slip of its training loss or without."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = s
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    first = xx - 1 if typo else zx  # D_x where D_z belongs, in the second minor
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * first) + xz * (yx * zy - yy * zx)


def test_the_folding_penalty_is_the_true_determinant_s_not_the_published_one():
    u = torch.randn(1, 3, 7, 8, 9, generator=torch.Generator().manual_seed(0)).double()
    pair, slopes = pair_of((7, 8, 9)), slopes_ahead(u)
    value = losses.Folding("sum")(pair, registered(pair, [u]))
    true, slipped = (minors(slopes, typo).neg().relu() for typo in (False, True))
    torch.testing.assert_close(value.double(), true.sum(), rtol=1e-5, atol=0)
    assert (slipped - true).abs().sum() > 0.1 * true.sum()


@SMALL
@pytest.mark.parametrize("power", [1, 2])
def test_the_published_smoothness_is_diffusion_up_to_a_factor(shape, power):
    ndim, u = len(shape), torch.randn(1, len(shape), *shape)
    means = [u.diff(dim=k).abs().pow(power).mean() for k in range(2, ndim + 2)]
    pair = pair_of(shape)
    value = losses.Diffusion(power)(pair, registered(pair, [u]))
    torch.testing.assert_close(value / ndim**2, torch.stack(means).mean())


@SMALL
def test_the_published_loss_is_composed_as_published(shape, composed):
    ndim = len(shape)
    cfg = composed("train", "loss=faim", f"ndim={ndim}")
    u, pair = 2 * torch.randn(1, ndim, *shape), pair_of(shape)
    out = registered(pair, [u])
    value = sum(build(term)(pair, out) * term.weight for term in cfg.loss.values())

    def boxes(x):
        conv = F.conv2d if ndim == 2 else F.conv3d
        return conv(x, torch.ones(1, 1, *[9] * ndim), padding=4)

    f, w, n = pair["fixed"], out.warped, 9**ndim
    mf, mw = boxes(f) / n, boxes(w) / n
    cross = boxes(f * w) - mw * boxes(f) - mf * boxes(w) + mf * mw * n
    vf = boxes(f * f) - 2 * mf * boxes(f) + mf**2 * n
    vw = boxes(w * w) - 2 * mw * boxes(w) + mw**2 * n
    cc = 1 - (cross**2 / (vf * vw + 1e-5)).mean()
    gradient = sum(u.diff(dim=k).square().mean() for k in range(2, ndim + 2)) / ndim
    slopes = torch.stack([torch.stack(row, -1) for row in slopes_ahead(u)], -2)
    depth = torch.linalg.det(slopes + torch.eye(ndim)).neg().relu().sum()
    expected = cc + 0.111 * ndim**2 * gradient + 1e-3 * depth
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert depth > 1


class Always(nn.Module):
    """A model that answers with the same fields and remembers what it saw."""

    def __init__(self, *fields):
        super().__init__()
        self.fields = fields

    def forward(self, fixed, moving):
        self.seen = moving
        return list(self.fields)


def waves(shape, size, phase):
    x = ops.identity_grid(shape, torch.zeros(()))
    return size * torch.sin(
        x.sum(1, keepdim=True) / 4 + phase + torch.arange(len(shape)).view(1, -1, *[1] * len(shape))
    )


@pytest.mark.parametrize("shape", [(16, 18), (12, 14, 16)])
def test_a_chain_moves_the_image_as_its_models_do_one_after_another(shape):
    ramp = ops.identity_grid(shape, torch.zeros(())).sum(1, keepdim=True)
    first, second = waves(shape, 0.7, 0.0), waves(shape, 1.5, 1.0)
    half = [n // 2 for n in shape]
    after = Always(ops.resize_field(second, half), second)
    coarse, u = Chain({"one": Always(first), "two": after})(ramp, ramp)
    assert torch.equal(after.seen, ops.warp(ramp, first))
    inner = (..., *[slice(3, -3)] * len(shape))
    one_by_one = ops.warp(ops.warp(ramp, first), second)  # exact: a warped ramp is linear in u
    torch.testing.assert_close(ops.warp(ramp, u)[inner], one_by_one[inner], atol=1e-4, rtol=0)
    wrong = ops.warp(ops.warp(ramp, second), first)
    assert (one_by_one - wrong)[inner].abs().max() > 0.1
    expected = ops.compose(ops.resize_field(second, half), ops.resize_field(first, half))
    assert torch.equal(coarse, expected)


@pytest.mark.parametrize(("ndim", "parameters"), [(2, 16 * 18 + 16 + 2 * 144 + 2), (3, 2_611)])
def test_a_refinement_has_the_published_size(ndim, parameters):
    assert count(Refined(nn.Identity(), ndim)) == parameters


@SMALL
def test_a_refinement_is_added_to_the_last_field(shape):
    u, coarse = waves(shape, 1.0, 0.0), waves([4] * len(shape), 1.0, 0.0)
    model = Refined(Always(coarse, u), len(shape), channels=5)
    fields = model(*images(shape))
    first, second = (layer for layer in model.refinement.modules() if hasattr(layer, "kernel_size"))
    conv = F.conv2d if len(shape) == 2 else F.conv3d
    hidden = conv(u, first.weight, first.bias, padding=1)
    change = conv(
        torch.where(hidden > 0, hidden, 0.2 * hidden), second.weight, second.bias, padding=1
    )
    expected = u + torch.where(change > 0, change, 0.2 * change)
    assert [f is g for f, g in zip(fields, (coarse, u), strict=False)] == [True, True]
    torch.testing.assert_close(fields[2], expected)


@SMALL
@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_refinement_teaches_the_model_nothing(shape, detached):
    model = Refined(FAIM(len(shape), (3, 2), 2, 4, flow_deviation=0.1), len(shape), 4, detached)
    u, refined = model(*images(shape))
    refined.square().sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in model.refinement.parameters())
    assert all((p.grad is None) == detached for p in model.model.parameters())
    model.zero_grad()
    u.square().sum().backward()
    assert all(p.grad is None for p in model.refinement.parameters())
    assert all(p.grad is not None for p in model.model.parameters())


class Steps(torch.utils.data.Dataset):
    def __init__(self, n=2):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        f, m = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(k))
        return {"fixed": f, "moving": m, "spacing": torch.ones(2), "name": str(k)}


class Taught(Alternation):
    """Notes which parts of the model changed in every epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        super().on_train_epoch_start(trainer, pl_module)
        self.before = {k: p.detach().clone() for k, p in pl_module.model.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        changed = {
            k for k, p in pl_module.model.named_parameters() if not torch.equal(p, self.before[k])
        }
        self.taught = [*getattr(self, "taught", []), {k.split(".")[0] for k in changed}]


def fit(module, epochs, *callbacks):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Steps()))
    return trainer


def refined_module(detached=True):
    model = Refined(FAIM(2, (3, 2), 2, 4, flow_deviation=0.1), 2, 4, detached)
    terms = {
        "similarity": losses.PerLevel(losses.Similarity(similarity.mean_squares), [1, 1]),
        "smoothness": losses.PerLevel(losses.Diffusion(), [1, 4], weight=0.01),
    }
    return RegistrationModule(model, terms, lambda p: torch.optim.Adam(p, 1e-2))


def test_parts_learn_in_turn_and_round_after_round():
    callback, module = Taught({"model": 2, "refinement": 1}), refined_module()
    fit(module, 5, callback)
    assert callback.taught == [{"model"}, {"model"}, {"refinement"}, {"model"}, {"model"}]
    assert all(p.requires_grad for p in module.parameters())


def test_what_was_held_before_stays_held():
    module = refined_module()
    module.model.model.flow.bias.requires_grad_(False)
    before = module.model.model.flow.bias.clone()
    fit(module, 2, Alternation({"model": 1, "refinement": 1}))
    assert not module.model.model.flow.bias.requires_grad
    assert torch.equal(module.model.model.flow.bias, before)


def test_the_published_rounds_are_three_and_four_epochs():
    turns = [Alternation({"model": 3, "refinement": 4}).turn(epoch) for epoch in range(21)]
    assert turns == 3 * (3 * ["model"] + 4 * ["refinement"])


def test_a_part_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"head.*Refined.*model, refinement"):
        fit(refined_module(), 1, Alternation({"head": 1}))


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_the_learning_rate_falls_with_inverse_time_at_every_step(decay):
    model = FAIM(2, (3, 2), 2, 4)
    terms = {"similarity": losses.Similarity(similarity.mean_squares)}
    module = RegistrationModule(
        model, terms, lambda p: torch.optim.SGD(p, 0.1), lambda o: InverseTime(o, decay)
    )
    trainer = fit(module, 3)
    (schedule,) = trainer.lr_scheduler_configs
    assert schedule.scheduler.get_last_lr() == [pytest.approx(0.1 / (1 + decay * 6))]


def points(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 5, len(shape), generator=generator) * (torch.tensor(shape) - 1.0)


def full_pair(shape):
    labels = [(image * 4).long() for image in images(shape)]
    return pair_of(
        shape,
        fixed_labels=labels[0],
        moving_labels=labels[1],
        fixed_mask=(labels[0] > 0).float(),
        moving_mask=(labels[1] > 0).float(),
        fixed_points=points(shape, 3),
        moving_points=points(shape, 4),
        displacement=waves(shape, 0.5, 0.0),
    )


@SMALL
def test_the_way_back_brings_everything_warped_home(shape):
    pair, u = full_pair(shape), waves(shape, 2.0, 0.0)
    back = returned(pair, registered(pair, [u]))
    for kind in ("", "_labels", "_mask", "_points"):
        assert torch.equal(back[f"fixed{kind}"], pair[f"moving{kind}"])
    assert torch.equal(back["moving"], ops.warp(pair["moving"], u))
    for kind in ("labels", "mask"):
        expected = ops.warp(pair[f"moving_{kind}"], u, "nearest", "zeros")
        assert torch.equal(back[f"moving_{kind}"], expected)
    assert not {"moving_points", "displacement"} & set(back)
    bare = returned(pair_of(shape), registered(pair, [u]))
    assert set(bare) == {"fixed", "moving", "spacing", "name"}


@SMALL
def test_the_sides_of_a_pair_are_exchanged(shape):
    pair = full_pair(shape)
    back = swapped(pair)
    assert set(back) == set(pair) - {"displacement"}
    for kind in ("", "_labels", "_mask", "_points"):
        assert torch.equal(back[f"fixed{kind}"], pair[f"moving{kind}"])
        assert torch.equal(back[f"moving{kind}"], pair[f"fixed{kind}"])
    again = swapped(back)
    assert all(torch.equal(again[k], pair[k]) for k in pair if k not in ("name", "displacement"))


def objective(module, pair):
    """What one training step minimises, and what it logs."""
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    module.log_dict = lambda values, **_: logged.update(values)
    return module.training_step(pair, 0), logged


def cyclic(model, terms=None, **settings):
    terms = terms or {
        "similarity": losses.Similarity(similarity.mean_squares),
        "smoothness": losses.Diffusion(weight=0.3),
    }
    return RegistrationModule(model, terms, torch.optim.Adam, **settings)


@SMALL
@pytest.mark.parametrize("way", ["warped", "fixed"])
def test_the_objective_of_a_cycle_is_that_of_both_ways(shape, way):
    model, pair = FAIM(len(shape), (3, 2), 2, 4, flow_deviation=0.5), pair_of(shape, 2)
    total, logged = objective(cyclic(model, cycle=0.7, consistency=0.2, way_back=way), pair)
    (u,) = model(pair["fixed"], pair["moving"])
    warped = ops.warp(pair["moving"], u)
    source = warped if way == "warped" else pair["fixed"]
    (v,) = model(pair["moving"], source)
    home = ops.warp(source, v)

    def slopes(u):
        return sum(u.diff(dim=k).square().sum(1).mean() for k in range(2, u.ndim))

    there = (warped - pair["fixed"]).square().mean() + 0.3 * slopes(u)
    back = (home - pair["moving"]).square().mean() + 0.3 * slopes(v)
    apart = losses.inverse_consistency(u, v)
    torch.testing.assert_close(total, there + 0.7 * back + 0.2 * apart)
    torch.testing.assert_close(logged["train/loss"], there)
    torch.testing.assert_close(logged["train/back/loss"], back)
    torch.testing.assert_close(logged["train/back/consistency"], 0.2 * apart)
    assert apart > 0.01
    alone, logged = objective(cyclic(model, consistency=0.2, way_back=way), pair)
    torch.testing.assert_close(alone, there + 0.2 * apart)
    assert "train/back/loss" not in logged
    plain, logged = objective(cyclic(model, way_back=way), pair)
    torch.testing.assert_close(plain, there)
    assert not any("back" in name for name in logged)


@SMALL
def test_labels_take_part_in_the_way_back_and_what_cannot_is_named(shape):
    model, pair = FAIM(len(shape), (3, 2), 2, 4, flow_deviation=0.5), full_pair(shape)
    total, logged = objective(cyclic(model, {"dice": losses.SoftDice()}, cycle=1.0), pair)
    assert logged["train/back/dice"] > 0
    torch.testing.assert_close(total, logged["train/dice"] + logged["train/back/dice"])
    for term, key in (
        (losses.EndpointError(), "displacement"),
        (losses.LandmarkDistance(), "points"),
    ):
        with pytest.raises(UserError, match=rf"{key}.*the way back of a"):
            objective(cyclic(model, {"term": term}, cycle=1.0), pair)


def test_another_way_back_is_refused():
    with pytest.raises(UserError, match=r"way_back=there.*warped, fixed"):
        cyclic(FAIM(2), way_back="there")


@pytest.mark.parametrize("shape", [(20, 18), (20, 17, 18)])
def test_a_field_and_its_inverse_are_consistent(shape):
    edge = torch.ones(shape)
    for axis, n in enumerate(shape):
        edge = edge * (torch.pi * torch.arange(n) / (n - 1)).sin().view(
            -1, *[1] * (len(shape) - axis - 1)
        )
    u = waves(shape, 2.0, 0.0) * edge
    apart = losses.inverse_consistency(u, -u)  # whose sum is nothing
    assert apart > 0.1
    assert losses.inverse_consistency(u, ops.invert(u, tolerance=1e-6)) < 0.05 * apart
    shift, ndim = torch.zeros(1, len(shape), *shape), len(shape)
    shift[:, 1] = 1.5
    value = losses.inverse_consistency(shift, torch.full_like(shift, 0.5))
    assert value.item() == pytest.approx(4 + 0.25 * (ndim - 1))


def test_inverse_consistency_has_a_right_gradient():
    u, v = (waves((5, 6), s, s).double().requires_grad_() for s in (0.4, 0.7))
    assert torch.autograd.gradcheck(losses.inverse_consistency, (u, v))


def test_the_sweep_varies_penalty_and_cycle_together(composed):
    runs = composed("train", "+sweep=faim_folding").hydra.sweeper.params.regime
    settings = [text.split("}")[0] for text in runs.split("{")[1:]]
    found = []
    for text in settings:
        cfg = composed("train", "+sweep=faim_folding", f"regime={{{text}}}")
        found.append((cfg.loss.folding.weight, cfg.cycle, cfg.module.name))
        assert build(cfg.module).cycle == cfg.cycle
    name = "voxelmorph_1"
    weights = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert found == [*((w, 0.0, name) for w in weights), (0.0, 1.0, f"{name}, cycle")]
