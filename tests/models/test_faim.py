"""FAIM: its network, losses and schedules as published."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regnet_lab import losses
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.models import FAIM
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.training.lr_schedulers import InverseTimeLR
from regnet_lab.training.module import RegistrationModule
from tests.helpers.pairs import make_random_images, make_random_pair
from tests.helpers.training import fit

PAPER = {"kernel_sizes": (7, 5, 3, 2), "branch_channels": 4}


SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


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
def test_faim_equals_the_original_code_on_its_sizes(shape, end):
    """144 and 180 miss one voxel at the last addition (end 1), 91 and 109 at the first (end 2)."""
    model = FAIM(len(shape), flow_init_std=0.1).double()
    for layer in model.modules():
        if isinstance(layer, nn.PReLU):
            nn.init.uniform_(layer.weight, 0.1, 0.5)
        elif getattr(layer, "bias", None) is not None:
            nn.init.normal_(layer.bias, std=0.1)
    fixed, moving = make_random_images(shape).double()
    expected = original(model, torch.cat([fixed, moving], 1), end)
    torch.testing.assert_close(model(fixed, moving)[0].double(), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(3, 8), (1, 5), (4, 9, 7)])
def test_faim_takes_images_smaller_than_its_strides(shape):
    (u,) = FAIM(len(shape))(*make_random_images(shape))
    assert u.shape == (1, len(shape), *shape)
    wide = [
        F.pad(image, [s for n in reversed(shape) for s in (0, max(7 - n, 0))])
        for image in make_random_images(shape)
    ]
    torch.manual_seed(0)
    model = FAIM(len(shape))
    crop = (..., *[slice(n) for n in shape])
    assert torch.equal(model(*make_random_images(shape))[0], model(*wide)[0][crop])


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


def test_folding_penalty_uses_the_true_determinant_not_the_published_one():
    u = torch.randn(1, 3, 7, 8, 9, generator=torch.Generator().manual_seed(0)).double()
    pair, slopes = make_random_pair((7, 8, 9)), slopes_ahead(u)
    value = losses.FoldingPenalty("sum")(pair, apply_displacement(pair, [u]))
    true, slipped = (minors(slopes, typo).neg().relu() for typo in (False, True))
    torch.testing.assert_close(value.double(), true.sum(), rtol=1e-5, atol=0)
    assert (slipped - true).abs().sum() > 0.1 * true.sum()


@SMALL
@pytest.mark.parametrize("power", [1, 2])
def test_the_published_smoothness_is_diffusion_up_to_a_factor(shape, power):
    ndim, u = len(shape), torch.randn(1, len(shape), *shape)
    means = [u.diff(dim=k).abs().pow(power).mean() for k in range(2, ndim + 2)]
    pair = make_random_pair(shape)
    value = losses.Diffusion(power)(pair, apply_displacement(pair, [u]))
    torch.testing.assert_close(value / ndim**2, torch.stack(means).mean())


@SMALL
def test_faim_loss_is_composed_as_published(shape, composed):
    ndim = len(shape)
    cfg = composed("train", "loss=faim", f"ndim={ndim}")
    u, pair = 2 * torch.randn(1, ndim, *shape), make_random_pair(shape)
    out = apply_displacement(pair, [u])
    value = sum(instantiate_config(term)(pair, out) * term.weight for term in cfg.loss.values())

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


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_learning_rate_decays_with_inverse_time_at_every_step(decay):
    model = FAIM(2, (3, 2), 2, 4)
    terms = {"similarity": losses.Similarity(similarity.mean_squares)}
    module = RegistrationModule(
        model, terms, lambda p: torch.optim.SGD(p, 0.1), lambda o: InverseTimeLR(o, decay)
    )
    trainer = fit(module, 3)
    (schedule,) = trainer.lr_scheduler_configs
    assert schedule.scheduler.get_last_lr() == [pytest.approx(0.1 / (1 + decay * 6))]


def test_sweep_varies_penalty_and_cycle_together(composed):
    runs = composed("train", "+sweep=faim_folding").hydra.sweeper.params.setting
    settings = [text.split("}")[0] for text in runs.split("{")[1:]]
    composed_settings = []
    for text in settings:
        cfg = composed("train", "+sweep=faim_folding", f"setting={{{text}}}")
        composed_settings.append((cfg.loss.folding.weight, cfg.cycle_weight, cfg.module.name))
        assert instantiate_config(cfg.module).cycle_weight == cfg.cycle_weight
    name = "voxelmorph_1"
    weights = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert composed_settings == [*((w, 0.0, name) for w in weights), (0.0, 1.0, f"{name}, cycle")]
