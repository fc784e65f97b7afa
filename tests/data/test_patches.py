import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import default_collate

from regnet_lab import losses
from regnet_lab.data.displacement_classes import classify_displacements, draw_balanced_voxels
from regnet_lab.data.patches import PatchDataModule, PatchDataset, crop_box
from regnet_lab.data.samplers import DrawNumberSampler
from regnet_lab.data.synthesis.deformed_images import DeformedImages, make_self_pair
from regnet_lab.data.synthesis.displacements.gaussian import LowFrequency
from regnet_lab.errors import UserError
from regnet_lab.losses.composite import find_bounding_box
from regnet_lab.models import RegNet
from regnet_lab.types import Pair, Registration

shapes = pytest.mark.parametrize("shape", [(30, 26), (16, 14, 18)])
SPACING = (1.0, 2.0, 0.5)
THRESHOLDS = [1.5, 4.0, 8.0]
LEARNING = 150  # steps


def pair(shape, number=0, **more):
    rng = np.random.default_rng(number)
    u = gaussian_filter(rng.normal(size=(len(shape), *shape)), [0, *[2] * len(shape)])
    u = torch.from_numpy(u / np.abs(u).max() * 9).float() / torch.tensor(
        SPACING[: len(shape)]
    ).view(-1, *[1] * len(shape))
    image = torch.from_numpy(rng.random((1, *shape), np.float32))
    return {**make_self_pair(image, f"p{number}", SPACING[: len(shape)]), "displacement": u, **more}


def patches(shape, count=5, **options):
    options = {
        "output_size": 3,
        "margin": 2,
        "images_per_chunk": 2,
        "patches_per_image": 30,
        **options,
    }
    return PatchDataset([pair(shape, n) for n in range(count)], **options)


def rule_by_hand(v, rule):
    """Class of one displacement in mm, as the publication words it."""
    for c, upper in enumerate(THRESHOLDS):
        lower = THRESHOLDS[c - 1] if c else 0
        if rule == "norm":
            last = c == len(THRESHOLDS) - 1
            if lower <= np.linalg.norm(v) and (last or np.linalg.norm(v) < upper):
                return c
        elif all(abs(v) < upper):
            enough = [abs(k) >= lower for k in v]
            if all(enough) if rule == "all" else any(enough):
                return c
    return -1


@shapes
@pytest.mark.parametrize("rule", ["all", "any", "norm"])
def test_classes_follow_the_rule(shape, rule):
    scale = torch.tensor(SPACING[: len(shape)]).view(-1, *[1] * len(shape))
    u = pair(shape)["displacement"] * scale
    classes = classify_displacements(u, THRESHOLDS, rule)
    vectors = u.flatten(1).T.double().numpy()
    expected = [rule_by_hand(v, rule) for v in vectors]
    np.testing.assert_array_equal(classes.flatten(), expected)
    assert set(expected) >= ({0, 1, 2} if rule == "norm" else {-1, 0, 1})
    assert (-1 in expected) == (rule != "norm")


def test_a_voxel_with_one_large_component_is_lost_by_the_published_rule_alone():
    u = torch.tensor([5.0, 0.1, 0.1]).view(3, 1, 1, 1)
    assert [
        classify_displacements(u, THRESHOLDS, rule).item() for rule in ("all", "any", "norm")
    ] == [-1, 2, 2]


@shapes
def test_patches_are_cropped_from_their_pair(shape):
    data = patches(shape)
    for n in range(0, 60, 7):
        patch = data[n]
        name, *centre = patch["name"].split("-")
        source, centre = pair(shape, int(name[1:])), [int(c) for c in centre]
        side, box = 7, [np.arange(c - 3, c + 4) for c in centre]
        for key in ("fixed", "moving", "displacement"):
            x = source[key].numpy()
            clamped = [np.clip(i, 0, m - 1) for i, m in zip(box, shape, strict=True)]
            expected = x[np.ix_(range(len(x)), *clamped)]
            np.testing.assert_array_equal(patch[key], expected)
        assert patch["fixed_mask"].shape == (1, *[side] * len(shape))
        assert find_bounding_box(patch["fixed_mask"][None]) == (slice(2, 5),) * len(shape)
        assert patch["fixed_mask"].sum() == 3 ** len(shape)


@shapes
def test_classes_and_the_voxels_of_a_class_are_drawn_equally_often(shape):
    data = patches(shape, patches_per_image=60)
    scale = torch.tensor(SPACING[: len(shape)])
    classes = []
    for n in range(120):
        u = data[n]["displacement"][(slice(None), *[3] * len(shape))] * scale
        classes.append(rule_by_hand(u.double().numpy(), "norm"))
    assert np.bincount(classes).tolist() == [40, 40, 40]
    drawn = draw_balanced_voxels(
        np.random.default_rng(0), np.array([[3, 0], [5, 0], [2, 0]]), 20_000
    )
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 10
    assert np.sum((counts - 2000) ** 2 / 2000) < 28  # 9 degrees of freedom, p = 0.001


@shapes
def test_centers_lie_off_the_border_and_inside_the_mask(shape):
    mask = torch.zeros(1, *shape)
    mask[:, : shape[0] // 2] = 1
    data = PatchDataset(
        [pair(shape, n, fixed_mask=mask) for n in range(2)], 1, 0, border=4, images_per_chunk=2
    )
    centres = np.array([[int(c) for c in data[n]["name"].split("-")[1:]] for n in range(100)])
    assert centres.min() >= 4
    assert (centres < np.array(shape) - 4).all()
    assert centres[:, 0].max() == shape[0] // 2 - 1
    own = [3 + 2 * k for k in range(len(shape))]
    data = PatchDataset(
        [pair(shape, n) for n in range(2)],
        1,
        0,
        border=own,
        images_per_chunk=2,
        patches_per_image=200,
    )
    centres = np.array([[int(c) for c in data[n]["name"].split("-")[1:]] for n in range(400)])
    assert centres.min(0).tolist() == own
    assert (np.array(shape) - 1 - centres.max(0)).tolist() == own


@shapes
def test_the_nth_patch_depends_on_seed_and_number_alone(shape):
    first, different = patches(shape), patches(shape, seed=1)
    again = pickle.loads(pickle.dumps(patches(shape)))
    numbers = [0, 61, 300, 5]
    names = [first[n]["name"] for n in numbers]
    assert [again[n]["name"] for n in reversed(numbers)] == names[::-1]
    assert [different[n]["name"] for n in numbers] != names
    assert len(first) == 180


def test_every_pair_is_used_once_per_pass_and_the_next_chunk_is_prepared():
    data = patches((20, 20), count=6)
    used = [{data[60 * c + n]["name"][:2] for n in range(60)} for c in range(3)]
    assert sorted(set().union(*used)) == [f"p{n}" for n in range(6)]
    assert all(len(names) == 2 for names in used)
    assert sorted(data.futures) == [2, 3]
    assert data.futures[3].result().pairs


def test_augmentation_changes_pairs_before_they_are_cut():
    def darker(pair, generator):
        return {**pair, "fixed": pair["fixed"] * 0 - torch.rand(1, generator=generator)}

    original, changed = patches((20, 22)), patches((20, 22), augment=darker)
    assert original[3]["name"] == changed[3]["name"]
    assert torch.equal(original[3]["moving"], changed[3]["moving"])
    assert (changed[3]["fixed"] < 0).all()
    assert torch.equal(changed[3]["fixed"], patches((20, 22), augment=darker)[3]["fixed"])


def module(**options):
    made = [pair((20, 22), n) for n in range(4)]

    def make(pairs, **more):
        return PatchDataset(pairs, 3, 2, images_per_chunk=2, patches_per_image=20, **more)

    return PatchDataModule(make, dataset=lambda split: made, batch_size=5, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_continues_where_it_stopped(workers):
    def names(loader):
        return [name for batch in loader for name in batch["name"]]

    loader = module(epoch_size=30, num_workers=workers).train_dataloader()
    first = names(loader)
    loader.sampler.set_epoch(1)
    second = names(loader)
    assert len(first) == len(second) == 30
    assert len({*first, *second}) > 45

    stopped = module(epoch_size=30).train_dataloader()
    stopped.sampler.set_epoch(1)
    batches = iter(stopped)
    begun = [name for _ in range(2) for name in next(batches)["name"]]
    resumed = module(epoch_size=30).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    assert begun + names(resumed) == second


def test_epochs_follow_one_another():
    order = DrawNumberSampler(7, 7, 0)
    order.set_epoch(2)
    order.start = 3
    assert list(order) == [17, 18, 19, 20]
    assert list(order) == list(range(14, 21))


def test_whole_pairs_are_evaluated_and_used_for_training_without_patches():
    batch = next(iter(module().val_dataloader()))
    assert batch["fixed"].shape == (1, 1, 20, 22)
    made = [pair((20, 22), n) for n in range(4)]
    whole = PatchDataModule(None, dataset=lambda split: made, batch_size=2)
    batch = next(iter(whole.train_dataloader()))
    assert batch["fixed"].shape == (2, 1, 20, 22)
    assert "fixed_mask" not in batch


def test_boxes_may_exceed_the_image():
    x = torch.arange(12.0).view(1, 3, 4)
    assert crop_box(x, [1, 1], [2, 2]).tolist() == [[[5, 6], [9, 10]]]
    assert crop_box(x, [-2, 3], [3, 3]).tolist() == [[[3, 3, 3]] * 3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"class_rule": "most"}, "class_rule=most"),
        ({"displacement_thresholds": [4.0, 2.0]}, "displacement_thresholds"),
        ({"patches_per_image": 0}, "patches_per_image=0"),
        ({"border": 13}, "border=13"),
    ],
)
def test_impossible_settings_are_named(options, sentence):
    with pytest.raises(UserError, match=sentence):
        patches((20, 22), **options)[0]


def test_unknown_displacements_are_named():
    data = PatchDataset([make_self_pair(torch.rand(1, 9, 9), "a")], 1, 0, images_per_chunk=1)
    with pytest.raises(UserError, match="a has no known displacement"):
        data[0]


@shapes
@pytest.mark.parametrize(
    "term", [losses.HuberDisplacement(), losses.BendingEnergy(), losses.SoftDice()]
)
def test_a_cropped_term_sees_the_box_of_the_mask_alone(shape, term):
    mask = torch.zeros(2, 1, *shape)
    mask[(0, 0, *[4] * len(shape))] = mask[(1, 0, *[10] * len(shape))] = 1
    generator = torch.Generator().manual_seed(0)
    u, true_u = 3 * torch.randn(2, 2, len(shape), *shape, generator=generator)
    labels = torch.randint(0, 3, (2, 2, 1, *shape), generator=generator)
    keys = {
        "fixed": mask,
        "moving": mask,
        "fixed_labels": labels[0],
        "moving_labels": labels[1],
        "displacement": true_u,
    }
    whole = Pair(**keys, fixed_mask=mask, spacing=torch.ones(2, len(shape)), name=["a", "b"])
    box = (..., *[slice(4, 11)] * len(shape))
    part = Pair(**{k: v[box] for k, v in keys.items()}, spacing=whole["spacing"], name=["a", "b"])
    value = losses.CroppedLoss(term)(whole, Registration([u], mask))
    expected = term(part, Registration([u[box]], mask[box]))
    torch.testing.assert_close(value, expected)
    bare = {k: v for k, v in whole.items() if k != "fixed_mask"}
    out = Registration([u], mask)
    assert losses.CroppedLoss(term)(bare, out) == term(bare, out)
    assert find_bounding_box(torch.zeros(1, 1, 3, 4)) == (slice(None),) * 2


@pytest.mark.slow
def test_regnet_learns_displacements_from_patches_and_finds_them_in_whole_images():
    torch.manual_seed(0)

    def images(split):
        rng = np.random.default_rng(["train", "val"].index(split))
        noise = [gaussian_filter(rng.normal(size=(64, 60)), 1.5) for _ in range(8)]
        return [
            make_self_pair(torch.from_numpy(x / x.std() / 4 + 0.5).float()[None], f"n{i}")
            for i, x in enumerate(noise)
        ]

    fields = LowFrequency(max_deform=3.0, sigma=8.0, border=4.0)
    pairs, judged = (
        DeformedImages(split, images, fields, num_pairs=400) for split in ("train", "val")
    )
    patches = PatchDataset(
        pairs, 22, RegNet.margin, [0.5, 1.5, 3.0], images_per_chunk=8, patches_per_image=8
    )
    model = RegNet(2, patch_margin=RegNet.margin)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    loss = losses.CroppedLoss(losses.HuberDisplacement())
    for step in range(LEARNING):
        batch = default_collate([patches[8 * step + k] for k in range(8)])
        u = model(batch["fixed"], batch["moving"])[-1]
        optimiser.zero_grad()
        loss(batch, Registration([u], batch["moving"])).backward()
        optimiser.step()
    model.eval()
    before, after = [], []
    with torch.no_grad():
        for n in range(6):
            batch = default_collate([judged[n]])
            u = model(batch["fixed"], batch["moving"])[-1]
            before.append(batch["displacement"].square().sum(1).sqrt().mean())
            after.append((u - batch["displacement"]).square().sum(1).sqrt().mean())
    assert sum(after) < 0.7 * sum(before)
