"""The backward direction of a training cycle."""

import pytest
import torch

from regnet_lab import losses, ops
from regnet_lab.errors import UserError
from regnet_lab.models import FAIM
from regnet_lab.ops import similarity
from regnet_lab.ops.pairs import apply_displacement, cycle_pair, swap_pair
from regnet_lab.training.module import RegistrationModule
from tests.helpers.fields import make_waves
from tests.helpers.pairs import make_random_images, make_random_pair

SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def points(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 5, len(shape), generator=generator) * (torch.tensor(shape) - 1.0)


def full_pair(shape):
    labels = [(image * 4).long() for image in make_random_images(shape)]
    return make_random_pair(
        shape,
        fixed_labels=labels[0],
        moving_labels=labels[1],
        fixed_mask=(labels[0] > 0).float(),
        moving_mask=(labels[1] > 0).float(),
        fixed_points=points(shape, 3),
        moving_points=points(shape, 4),
        displacement=make_waves(shape, 0.5, 0.0),
    )


@SMALL
def test_cycle_pair_maps_warped_data_to_the_moving_image(shape):
    pair, u = full_pair(shape), make_waves(shape, 2.0, 0.0)
    cycle = cycle_pair(pair, apply_displacement(pair, [u]))
    for kind in ("", "_labels", "_mask", "_points"):
        assert torch.equal(cycle[f"fixed{kind}"], pair[f"moving{kind}"])
    assert torch.equal(cycle["moving"], ops.warp(pair["moving"], u))
    for kind in ("labels", "mask"):
        expected = ops.warp(pair[f"moving_{kind}"], u, "nearest", "zeros")
        assert torch.equal(cycle[f"moving_{kind}"], expected)
    assert not {"moving_points", "displacement"} & set(cycle)
    bare = cycle_pair(make_random_pair(shape), apply_displacement(pair, [u]))
    assert set(bare) == {"fixed", "moving", "spacing", "name"}


@SMALL
def test_swap_pair_exchanges_fixed_and_moving(shape):
    pair = full_pair(shape)
    swapped = swap_pair(pair)
    assert set(swapped) == set(pair) - {"displacement"}
    for kind in ("", "_labels", "_mask", "_points"):
        assert torch.equal(swapped[f"fixed{kind}"], pair[f"moving{kind}"])
        assert torch.equal(swapped[f"moving{kind}"], pair[f"fixed{kind}"])
    again = swap_pair(swapped)
    assert all(torch.equal(again[k], pair[k]) for k in pair if k not in ("name", "displacement"))


def objective(module, pair):
    """The objective of one training step, and its logged values."""
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
def test_cycle_objective_has_the_terms_of_both_directions(shape, way):
    model, pair = FAIM(len(shape), (3, 2), 2, 4, flow_init_std=0.5), make_random_pair(shape, 2)
    total, logged = objective(
        cyclic(model, cycle_weight=0.7, inverse_consistency_weight=0.2, cycle_input=way), pair
    )
    (u,) = model(pair["fixed"], pair["moving"])
    warped = ops.warp(pair["moving"], u)
    source = warped if way == "warped" else pair["fixed"]
    (v,) = model(pair["moving"], source)
    rewarped = ops.warp(source, v)

    def slopes(u):
        return sum(u.diff(dim=k).square().sum(1).mean() for k in range(2, u.ndim))

    forward = (warped - pair["fixed"]).square().mean() + 0.3 * slopes(u)
    backward = (rewarped - pair["moving"]).square().mean() + 0.3 * slopes(v)
    inconsistency = losses.inverse_consistency(u, v)
    torch.testing.assert_close(total, forward + 0.7 * backward + 0.2 * inconsistency)
    torch.testing.assert_close(logged["train/loss"], forward)
    torch.testing.assert_close(logged["train/backward/loss"], backward)
    torch.testing.assert_close(logged["train/backward/consistency"], 0.2 * inconsistency)
    assert inconsistency > 0.01
    total, logged = objective(cyclic(model, inverse_consistency_weight=0.2, cycle_input=way), pair)
    torch.testing.assert_close(total, forward + 0.2 * inconsistency)
    assert "train/backward/loss" not in logged
    total, logged = objective(cyclic(model, cycle_input=way), pair)
    torch.testing.assert_close(total, forward)
    assert not any("back" in name for name in logged)


@SMALL
def test_backward_direction_uses_labels_and_names_unusable_keys(shape):
    model, pair = FAIM(len(shape), (3, 2), 2, 4, flow_init_std=0.5), full_pair(shape)
    total, logged = objective(cyclic(model, {"dice": losses.SoftDice()}, cycle_weight=1.0), pair)
    assert logged["train/backward/dice"] > 0
    torch.testing.assert_close(total, logged["train/dice"] + logged["train/backward/dice"])
    for term, key in (
        (losses.EndpointError(), "displacement"),
        (losses.LandmarkDistance(), "points"),
    ):
        with pytest.raises(UserError, match=rf"{key}.*a \(swapped\)"):
            objective(cyclic(model, {"term": term}, cycle_weight=1.0), pair)


def test_unknown_cycle_input_is_refused():
    with pytest.raises(UserError, match=r"cycle_input=there.*warped, fixed"):
        cyclic(FAIM(2), cycle_input="there")
