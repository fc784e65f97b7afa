"""Properties of all losses."""

import pytest
import torch

from regnet_lab import losses, ops
from regnet_lab.errors import UserError
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement
from tests.helpers.losses import SHAPES, make_complete_pair, make_registration, smooth

ALL = {
    "similarity": lambda: losses.Similarity(similarity.mean_squares),
    "masked": lambda: losses.Similarity(similarity.local_ncc, masked=True),
    "diffusion": losses.Diffusion,
    "total variation": lambda: losses.Diffusion(power=1),
    "isotropic total variation": losses.TotalVariation,
    "bending": losses.BendingEnergy,
    "folding": losses.FoldingPenalty,
    "endpoint": losses.EndpointError,
    "huber": losses.HuberDisplacement,
    "dice": losses.SoftDice,
    "dice where labelled": lambda: losses.SoftDice(skip_unlabelled=True),
    "affine": losses.AffinePenalty,
    "landmarks": losses.LandmarkDistance,
    "per level": lambda: losses.DeepSupervision(losses.SoftDice(), [0.5, 1.0]),
    "unrolled": lambda: losses.UnrolledLoss(losses.EndpointError(), temperature=0.5),
    "cropped": lambda: losses.CroppedLoss(losses.HuberDisplacement()),
}


EVERY = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


def test_every_loss_is_tested():
    kinds = {type(make()) for make in ALL.values()}
    assert kinds == set(losses.Loss.__subclasses__())


@SHAPES
@EVERY
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_the_gradient_of_every_loss_reaches_the_displacement(shape, make, mixed_precision):
    pair = make_complete_pair(shape, batch=2)
    u = (3 * smooth(shape, len(shape), 2, sigma=1, seed=7)).requires_grad_()  # folds somewhere
    coarse = ops.resize_field(u, [4, 5, 6][: len(shape)])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed_precision):
        value = make()(pair, apply_displacement(pair, [coarse, u]))
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(u.grad).all()
    assert u.grad.abs().max() > 0


@SHAPES
@EVERY
def test_mixed_precision_does_not_change_a_loss(shape, make):
    pair, u = make_complete_pair(shape), smooth(shape, len(shape), seed=7)
    coarse = ops.resize_field(u, [4, 5, 6][: len(shape)])
    single = make()(pair, apply_displacement(pair, [coarse, u]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make()(pair, apply_displacement(pair, [coarse, u]))
    torch.testing.assert_close(mixed, single)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (ALL["masked"], "fixed_mask"),
        (ALL["endpoint"], "displacement"),
        (ALL["huber"], "displacement"),
        (ALL["dice"], "fixed_labels"),
        (ALL["dice"], "moving_labels"),
        (ALL["landmarks"], "fixed_points"),
        (ALL["landmarks"], "moving_points"),
        (ALL["per level"], "moving_labels"),
        (ALL["unrolled"], "displacement"),
    ],
)
def test_missing_keys_are_named_in_the_error(make, key):
    pair = make_complete_pair((9, 11))
    del pair[key]
    u = torch.zeros(1, 2, 9, 11)
    with pytest.raises(UserError, match=rf"(?s){key}.*case 7"):
        make()(pair, apply_displacement(pair, [u, u]))


def test_forward_does_not_apply_the_weight():
    for make in (losses.BendingEnergy, losses.Diffusion, losses.FoldingPenalty, losses.SoftDice):
        assert make(weight=0.25).weight == 0.25
    pair, u = make_complete_pair((9, 11)), smooth((9, 11), 2)
    values = [losses.Diffusion(weight=w)(pair, make_registration(u)) for w in (1.0, 5.0)]
    assert values[0] == values[1]  # the module multiplies
