"""Augmentation: what a pair carries stays true of its images, and every draw can be repeated."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.utils.data import Dataset

from regnet_lab import ops
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.augmentation import (
    AugmentedPairs,
    Compose,
    IntensityAugmentation,
    MovingAffine,
    SharedAffine,
    draw_affine_matrix,
)
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(45, 52), (33, 38, 35)])
EXTENT = {"rotation": 12, "scale": 0.1, "shear": 0.05, "translation": 0.03}
GEOMETRIC = {
    "shared": lambda: SharedAffine(**EXTENT, flip=[0, 1]),
    "moving": lambda: MovingAffine(**EXTENT),
    "both": lambda: Compose({"a": SharedAffine(**EXTENT, flip=[1]), "b": MovingAffine(**EXTENT)}),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bump(shape, centre, width):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.exp(-((grid - centre) ** 2).sum(-1) / (2 * width**2))


def smooth_pair(shape, seed=0):
    """Smooth images in one smooth displacement, balls as labels and their centres as points."""
    rng = np.random.default_rng(seed)
    ndim, size = len(shape), np.array(shape)
    u = torch.zeros(1, ndim, *shape)
    for axis in range(ndim):
        wave = bump(shape, size * rng.uniform(0.4, 0.6, ndim), size.mean() / 4)
        u[0, axis] = 3 * torch.from_numpy(wave).float() * (1 if axis % 2 else -1)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    moving = torch.from_numpy((noise / np.abs(noise).max() + 1) / 2).float()[None, None]
    places = size * rng.uniform(0.3, 0.7, (5, ndim)) // 1
    x = ops.identity_grid(shape, u)
    labels = torch.zeros(1, 1, *shape, dtype=torch.int16)
    moving_points = torch.from_numpy(places).float()
    for value, place in enumerate(moving_points, start=1):
        ball = (x[0] - place.view(-1, *[1] * ndim)).norm(dim=0) <= 3
        labels[0, 0][ball & (labels[0, 0] == 0)] = value
    inverse = ops.invert(u)
    fixed_points = moving_points + ops.sample_at(inverse, moving_points[None])[0]
    return {
        "fixed": ops.warp(moving, u)[0],
        "moving": moving[0],
        "fixed_labels": ops.warp(labels, u, "nearest")[0],
        "moving_labels": labels[0],
        "fixed_mask": torch.ones(1, *shape),
        "moving_mask": torch.ones(1, *shape),
        "fixed_points": fixed_points,
        "moving_points": moving_points,
        "displacement": u[0],
        "spacing": torch.tensor([1.0, 1.5, 0.8][:ndim]),
        "name": "one",
    }


def inner(shape, margin):
    return (..., *[slice(int(n * margin), n - int(n * margin)) for n in shape])


@shapes
@pytest.mark.parametrize("kind", GEOMETRIC)
@pytest.mark.parametrize("seed", [1, 2])
def test_warping_by_the_augmented_displacement_gives_the_fixed_image(shape, kind, seed):
    pair = smooth_pair(shape)
    changed = GEOMETRIC[kind]()(pair, generator(seed))
    warped = ops.warp(changed["moving"][None], changed["displacement"][None])[0]
    box = inner(shape, 0.27)
    before = (changed["moving"] - changed["fixed"])[box].abs().mean()
    error = (warped - changed["fixed"])[box].abs()
    assert error.max() < 0.03
    assert error.mean() < 0.1 * before
    assert (changed["moving"] - pair["moving"]).abs().mean() > 0.02


@shapes
@pytest.mark.parametrize("kind", GEOMETRIC)
@pytest.mark.parametrize("seed", [3, 4])
def test_points_follow_the_displacement(shape, kind, seed):
    changed = GEOMETRIC[kind]()(smooth_pair(shape), generator(seed))
    led = ops.sample_at(changed["displacement"][None], changed["fixed_points"][None])[0]
    distance = changed["fixed_points"] + led - changed["moving_points"]
    assert distance.abs().max() < 0.1


@shapes
@pytest.mark.parametrize("kind", GEOMETRIC)
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_point_and_its_label_stay_together(shape, kind, seed):
    pair = smooth_pair(shape)
    for side in ("fixed", "moving"):  # cubes of 3 voxels, one about each point
        pair[f"{side}_points"] = pair["moving_points"][:1] // 1
        cube = torch.zeros(1, *shape, dtype=torch.int16)
        cube[(0, *(slice(i - 2, i + 3) for i in pair[f"{side}_points"][0].int().tolist()))] = 7
        pair[f"{side}_labels"] = cube
    changed = GEOMETRIC[kind]()(pair, generator(seed))
    for side in ("fixed", "moving"):
        label_center = (changed[f"{side}_labels"][0] == 7).nonzero().float().mean(0)
        assert (label_center - changed[f"{side}_points"][0]).abs().max() < 0.51


@shapes
def test_images_labels_and_masks_are_resampled_as_scipy_does(shape):
    pair = smooth_pair(shape)
    extent = {"rotation": 9, "shear": 0.05, "translation": 0.04}
    changed = SharedAffine(**extent)(pair, generator(8))
    matrix = draw_affine_matrix(generator(8), shape, pair["spacing"], **extent).double().numpy()
    linear, shift = matrix[:-1, :-1], matrix[:-1, -1]

    def peer(key, order, mode="constant"):
        array = pair[key][0].double().numpy()
        return ndimage.affine_transform(array, linear, shift, order=order, mode=mode)

    for side in ("fixed", "moving"):
        image = peer(side, 1, "nearest")
        np.testing.assert_allclose(changed[side][0].numpy(), image, atol=1e-4)
        labels = changed[f"{side}_labels"][0].numpy()
        assert (labels == peer(f"{side}_labels", 0)).mean() > 0.9999
        # a mask ends with the last cell, half a voxel beyond where scipy's does
        mask = changed[f"{side}_mask"][0].numpy()
        assert (mask[peer(f"{side}_mask", 1) > 0.999] == 1).all()
        assert 0.05 < (mask == 0).mean() < 0.5
    assert changed["moving_labels"].dtype == torch.int16


@shapes
def test_flips_are_exact(shape):
    pair = smooth_pair(shape)
    changed = next(
        c
        for c in (SharedAffine(flip=[1])(pair, generator(s)) for s in range(20))
        if not torch.equal(c["fixed_labels"], pair["fixed_labels"])
    )
    assert torch.equal(changed["fixed_labels"], pair["fixed_labels"].flip(2))
    torch.testing.assert_close(changed["moving"], pair["moving"].flip(2), atol=1e-5, rtol=0)
    sign = torch.tensor([1.0, -1.0, 1.0][: len(shape)]).view(-1, *[1] * len(shape))
    expected = sign * pair["displacement"].flip(2)
    torch.testing.assert_close(changed["displacement"], expected, atol=1e-4, rtol=0)
    points = pair["fixed_points"].clone()
    points[:, 1] = shape[1] - 1 - points[:, 1]
    torch.testing.assert_close(changed["fixed_points"], points, atol=1e-4, rtol=0)


@shapes
def test_zero_ranges_change_nothing(shape):
    pair = smooth_pair(shape)
    changed = Compose({"a": SharedAffine(), "b": MovingAffine()})(pair, generator())
    for key, value in pair.items():
        if key != "name":
            torch.testing.assert_close(changed[key], value, atol=1e-5, rtol=0)


@shapes
def test_a_rotation_turns_millimetres_and_not_voxels(shape):
    spacing = torch.tensor([1.0, 2.5, 0.7][: len(shape)])
    matrix = draw_affine_matrix(generator(3), shape, spacing, rotation=30)
    linear = matrix[:-1, :-1] * spacing[:, None] / spacing
    torch.testing.assert_close(linear @ linear.T, torch.eye(len(shape)), atol=1e-5, rtol=0)
    assert (linear - torch.eye(len(shape))).abs().max() > 0.05
    centre = (torch.tensor(shape) - 1) / 2
    torch.testing.assert_close(ops.transform_points(matrix, centre[None])[0], centre)


@shapes
def test_draws_stay_within_their_ranges(shape):
    ndim, ones = len(shape), torch.ones(len(shape))
    turns, sizes, shifts = [], [], []
    for seed in range(60):
        turn = draw_affine_matrix(generator(seed), shape, ones, rotation=20)[:-1, :-1]
        angle = math.degrees(math.acos((turn.trace() - ndim + 2) / 2 - 1e-6))
        turns.append(angle)
        size = draw_affine_matrix(generator(seed), shape, ones, scale=0.2)[:-1, :-1]
        sizes.append(size.diagonal().log().abs().max())
        moved = draw_affine_matrix(generator(seed), shape, ones, translation=0.1)[:-1, -1]
        shifts.append((moved / torch.tensor(shape)).abs().max())
    planes = ndim * (ndim - 1) / 2
    assert 10 < max(turns) <= 20 * math.sqrt(planes) + 0.1
    assert 0.15 < max(sizes) <= 0.2 + 1e-6
    assert 0.08 < max(shifts) <= 0.1 + 1e-6


def test_an_argument_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="unexpected keyword argument 'rotaton'"):
        SharedAffine(rotaton=3)
    with pytest.raises(UserError, match=r"flip=\[2\]: the images have axes 0 to 1"):
        SharedAffine(flip=[2])(smooth_pair((12, 14)), generator())


@shapes
def test_pairs_without_the_optional_parts_can_be_augmented(shape):
    pair = {k: v for k, v in smooth_pair(shape).items() if k in ("fixed", "moving", "spacing")}
    changed = GEOMETRIC["both"]()(pair, generator(2))
    assert changed.keys() == pair.keys()
    assert not torch.equal(changed["moving"], pair["moving"])


@shapes
def test_intensities_of_the_two_images_change_on_their_own_and_nothing_else_does(shape):
    pair = smooth_pair(shape)
    pair["moving"] = pair["fixed"].clone()
    originals = {key: value.clone() for key, value in pair.items() if key != "name"}
    changed = IntensityAugmentation(probability=1)(pair, generator(1))
    assert type(changed["fixed"]) is torch.Tensor
    assert changed["fixed"].dtype == torch.float32
    assert (changed["fixed"] - changed["moving"]).abs().mean() > 0.01
    assert (changed["fixed"] - pair["fixed"]).abs().mean() > 0.01
    for key, value in originals.items():
        assert torch.equal(pair[key], value), "the pair that was given has changed"
        assert key in ("fixed", "moving") or changed[key] is pair[key]


def test_gamma_bias_field_and_noise_have_their_effect():
    pair = smooth_pair((40, 48))
    image = pair["fixed"]

    def only(**strength):
        amounts = {"gamma": 0.0, "bias_field": 0.0, "noise": 0.0, "probability": 1} | strength
        return IntensityAugmentation(**amounts)(pair, generator(2))["fixed"]

    torch.testing.assert_close(only(), image, atol=1e-5, rtol=0)
    order = image.flatten().argsort()
    assert (only(gamma=0.8).flatten()[order].diff() >= -1e-6).all()
    field = (only(bias_field=0.3) / image.clamp(min=1e-3))[0]
    assert field.std() > 0.02
    assert ops.gradient(field[None, None]).abs().max() < 0.2
    noise = only(noise=0.2) - image
    assert 0 < noise.std() <= 0.21
    correlation = np.corrcoef(noise[0, :-1].flatten(), noise[0, 1:].flatten())[0, 1]
    assert abs(correlation) < 0.1


class Counted(Dataset):
    """Seven pairs whose images say their number."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        x = torch.rand(1, 8, 9, generator=generator(index))
        return {"fixed": x, "moving": x, "spacing": torch.ones(2), "name": str(index)}


def loader(**options):
    augment = SharedAffine(translation=0.2)
    module = PairDataModule(lambda split: Counted(), 2, 10, seed=3, augment=augment, **options)
    return module.train_dataloader()


def epoch(data, number):
    data.sampler.set_epoch(number)
    return [
        (name, x) for batch in data for name, x in zip(batch["name"], batch["fixed"], strict=True)
    ]


def same(first, second):
    return len(first) == len(second) and all(
        a == b and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True)
    )


def test_worker_processes_draw_the_same_augmentations_as_the_main_process():
    alone, shared = loader(), loader(num_workers=2)
    for number in (0, 1):
        assert same(epoch(alone, number), epoch(shared, number))


def test_each_draw_of_a_pair_is_augmented_differently():
    drawn = epoch(loader(), 0) + epoch(loader(), 1)
    images = {}
    for name, x in drawn:
        assert all(not torch.equal(x, other) for other in images.get(name, []))
        images.setdefault(name, []).append(x)
    assert max(map(len, images.values())) >= 2
    other = PairDataModule(
        lambda split: Counted(), 2, 10, seed=4, augment=SharedAffine(translation=0.2)
    )
    first = dict(epoch(other.train_dataloader(), 0))
    assert all(not torch.equal(x, first[name]) for name, x in drawn if name in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_resumed_within_an_epoch_goes_on_with_the_same_items(workers):
    whole = epoch(loader(), 2)
    stopped = loader(num_workers=workers)
    stopped.sampler.set_epoch(2)
    batches = iter(stopped)
    for _ in range(2):
        next(batches)
    state = stopped.state_dict()
    resumed = loader(num_workers=workers)
    resumed.load_state_dict(state)
    remaining = [
        (n, x) for batch in resumed for n, x in zip(batch["name"], batch["fixed"], strict=True)
    ]
    assert same(whole[4:], remaining)


def test_validation_pairs_are_left_as_they_are_and_so_is_the_order():
    augmented = PairDataModule(
        lambda split: Counted(), 2, 10, seed=3, augment=SharedAffine(shear=0.3)
    )
    unaugmented = PairDataModule(lambda split: Counted(), 2, 10, seed=3)
    for pair, expected in zip(
        augmented.val_dataloader(), unaugmented.val_dataloader(), strict=True
    ):
        assert torch.equal(pair["fixed"], expected["fixed"])
    names = [[n for n, _ in epoch(m.train_dataloader(), 1)] for m in (augmented, unaugmented)]
    assert names[0] == names[1]


@shapes
def test_augmentation_does_not_change_the_pairs_of_the_data_set(shape):
    data = PhantomPairs("train", len(shape), [24] * len(shape), num_pairs=1)
    before = {k: v.clone() for k, v in data[0].items() if k != "name"}
    steps = {"a": SharedAffine(**EXTENT), "b": MovingAffine(**EXTENT), "c": IntensityAugmentation()}
    drawn = AugmentedPairs(data, Compose(steps), seed=0)
    assert not torch.equal(drawn[0, 0]["fixed"], drawn[1, 0]["fixed"])
    assert all(torch.equal(data[0][key], value) for key, value in before.items())


def test_single_transforms_of_the_configuration_can_be_removed(composed):
    small = ["data=synthetic", "ndim=2", "data.dataset.shape=24", "data.dataset.num_pairs=2"]
    assert instantiate_config(composed("train", *small).data).augment is None
    leaner = composed("train", *small, "augment=default", "~data.augment.transforms.intensity")
    module = instantiate_config(leaner.data)
    assert list(module.augment.transforms) == ["shared_affine", "moving_affine"]
    batch = next(iter(module.train_dataloader()))
    assert batch["fixed"].shape == (1, 1, 24, 24)
    assert (
        list(instantiate_config(composed("train", "augment=default").data).augment.transforms)[-1]
        == "intensity"
    )
