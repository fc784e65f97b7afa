import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, map_coordinates
from scipy.stats import kstest
from torch.utils.data import default_collate

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom import (
    PhantomAnatomy,
    compute_ellipsoid_depth,
    sample_smooth_noise,
)
from regnet_lab.data.synthesis.phantom_pairs import (
    PhantomPairs,
    sample_diffeomorphism,
    simulate_scanner,
)
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(33, 40), (20, 24, 22)])
full_sizes = pytest.mark.parametrize("shape", [(128, 128), (48, 56, 52)])


def make_phantom_pairs(shape, split="train", count=3, **options):
    return PhantomPairs(split, len(shape), list(shape), num_pairs=count, **options)


def are_equal(first, second):
    return first["name"] == second["name"] and all(
        torch.equal(first[key], second[key]) for key in first if key != "name"
    )


def compute_dice(reference, labels):
    """Of every label of ``one``, counted by numpy."""
    reference, labels = reference.numpy(), labels.numpy()
    return [
        2
        * np.sum((reference == k) & (labels == k))
        / (np.sum(reference == k) + np.sum(labels == k))
        for k in range(1, reference.max() + 1)
    ]


@shapes
def test_pairs_have_the_documented_shapes_types_and_ranges(shape):
    ndim, data = len(shape), make_phantom_pairs(shape, num_points=17)
    pair = data[2]
    assert len(data) == 3
    assert pair["name"] == "synthetic-train-0002"
    assert pair["spacing"].tolist() == [1.0] * ndim
    assert pair["displacement"].shape == (ndim, *shape)
    for side in ("fixed", "moving"):
        image, labels, points = (pair[side + key] for key in ("", "_labels", "_points"))
        assert image.shape == labels.shape == (1, *shape)
        assert image.min() >= 0
        assert image.max() <= 1
        assert labels.dtype == torch.int64
        assert points.shape == (17, ndim)
        assert (points >= -1e-4).all()
        assert (points <= torch.tensor(shape) - 1 + 1e-4).all()
    floats = ("fixed", "moving", "displacement", "spacing", "fixed_points", "moving_points")
    assert {pair[key].dtype for key in floats} == {torch.float32}


@shapes
def test_pairs_depend_only_on_seed_split_and_index(shape):
    forward, backward = make_phantom_pairs(shape), make_phantom_pairs(shape, cache_gigabytes=0)
    expected = [forward[i] for i in range(3)]
    assert all(are_equal(backward[i], expected[i]) for i in (2, 0, 1))
    assert all(are_equal(forward[i], expected[i]) for i in range(3))
    pairs = [
        *make_phantom_pairs(shape, "val"),
        *make_phantom_pairs(shape, "test"),
        *make_phantom_pairs(shape, seed=1),
        *expected,
    ]
    for i, pair in enumerate(pairs):
        for earlier in pairs[:i]:
            assert not torch.allclose(pair["displacement"], earlier["displacement"], atol=0.5)
            assert not torch.equal(pair["moving_labels"], earlier["moving_labels"])


def test_another_process_makes_the_same_pair():
    program = (
        "from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs\n"
        "print(PhantomPairs('val', 2, 32)[5]['fixed'].double().sum().item())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) == PhantomPairs("val", 2, 32)[5]["fixed"].double().sum().item()


def test_only_as_many_pairs_are_cached_as_memory_allows():
    data = PhantomPairs("train", 2, 32, num_pairs=5, cache_gigabytes=2.5 * 32 * 32 * 32 / 1e9)
    pairs = [data[i] for i in range(5)]
    is_cached = [data[i]["fixed"] is pairs[i]["fixed"] for i in range(5)]
    assert is_cached == [True, True, False, False, False]


@full_sizes
def test_true_displacement_warps_moving_labels_to_fixed_labels(shape):
    pair = make_phantom_pairs(shape)[0]
    fixed, moving = pair["fixed_labels"], pair["moving_labels"]
    u = pair["displacement"].numpy()
    coordinates = np.indices(shape) + u
    shares = [  # linear interpolation of each label's share of a voxel
        map_coordinates((moving[0] == k).float().numpy(), coordinates, order=1, mode="nearest")
        for k in range(9)
    ]
    pulled = torch.from_numpy(np.argmax(shares, 0))[None]
    opposite = map_coordinates(moving[0].numpy(), np.indices(shape) - u, order=0, mode="nearest")
    assert (
        np.mean(compute_dice(fixed, pulled)) > {2: 0.95, 3: 0.9}[len(shape)]
    )  # half a voxel at edges
    assert np.mean(compute_dice(fixed, moving)) < 0.75
    assert np.mean(compute_dice(fixed, torch.from_numpy(opposite)[None])) < 0.6
    surely = torch.from_numpy(np.max(shares, 0) > 0.999)[None]
    assert surely.float().mean() > 0.5
    assert (pulled == fixed)[surely].float().mean() > 0.998


@full_sizes
def test_fixed_image_is_the_moving_anatomy_at_x_plus_u(shape):
    pair = make_phantom_pairs(shape, noise=0, bias_field=0)[1]
    fixed, moving = pair["fixed"], pair["moving"]
    warped = ops.warp(moving[None], pair["displacement"][None])[0]
    error, identity = ((image - fixed).square().mean().sqrt() for image in (warped, moving))
    assert error < 0.3 * identity
    sharpness = [ops.gradient(image[None]).norm(dim=2).mean() for image in (fixed, moving)]
    assert sharpness[0] / sharpness[1] == pytest.approx(1, abs=0.1)  # neither was resampled


@shapes
def test_anatomy_does_not_depend_on_the_sampling_grid(shape):
    anatomy = PhantomAnatomy(np.random.default_rng(0), shape, labels=8)
    x = ops.identity_grid(shape, torch.empty(0))
    image, labels = anatomy(x)
    later, later_labels = anatomy(x.flip(2) * 1.0)
    assert torch.equal(later_labels.flip(2), labels)
    torch.testing.assert_close(later.flip(2), image)


@full_sizes
def test_scanners_make_the_images_differ_where_the_anatomy_agrees(shape):
    clean, scan = make_phantom_pairs(shape, noise=0, bias_field=0)[0], make_phantom_pairs(shape)[0]
    assert torch.equal(clean["displacement"], scan["displacement"])
    change = [(scan[side] - clean[side]).flatten() for side in ("fixed", "moving")]
    assert all(0.02 < values.std() < 0.2 for values in change)
    outside = (clean["fixed"] == 0) & (clean["moving"] == 0)
    noise = torch.stack([scan[side][outside] for side in ("fixed", "moving")])
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.05


def test_noise_is_rician():
    noise = simulate_scanner(
        np.random.default_rng(0), torch.zeros(1, 1, 60, 70), noise=0.05, bias=0
    )
    assert kstest(noise.flatten().numpy(), "rayleigh", args=(0, 0.05)).pvalue > 0.01


@shapes
def test_points_move_with_the_displacement(shape):
    pair = make_phantom_pairs(shape)[0]
    at = pair["fixed_points"].numpy().T
    u = [map_coordinates(c, at, order=1) for c in pair["displacement"].numpy()]
    np.testing.assert_allclose(pair["moving_points"].numpy().T, at + u, atol=0.05)
    assert np.linalg.norm(u, axis=0).mean() > 0.3


@shapes
def test_points_lie_inside_structures_of_every_kind(shape):
    pair = make_phantom_pairs(shape)[0]
    index = tuple(pair["fixed_points"].long().T)
    counts = pair["fixed_labels"][0][index].bincount(minlength=9)
    assert counts[0] == 0
    assert (counts[1:] > 0).all()


@shapes
@pytest.mark.parametrize("amplitude", [0.04, 0.1])
def test_displacements_have_no_folds_and_stay_in_the_grid(shape, amplitude):
    u = sample_diffeomorphism(np.random.default_rng(3), shape, amplitude, 0.17)
    slope = np.stack([np.stack(np.gradient(c)) for c in u[0].double().numpy()])
    matrix = np.moveaxis(slope, (0, 1), (-2, -1)) + np.eye(len(shape))
    assert np.linalg.det(matrix).min() > 0
    target = u[0] + ops.identity_grid(shape, u)[0]
    size = torch.tensor(shape).view(-1, *[1] * len(shape))
    assert (target >= -1e-4).all()
    assert (target <= size - 1 + 1e-4).all()
    assert (u[0] / size).norm(dim=0).mean() == pytest.approx(amplitude, rel=0.2)


@shapes
def test_smoother_displacements_change_less_from_voxel_to_voxel(shape):
    def slope(smoothness):
        fields = [
            sample_diffeomorphism(np.random.default_rng(seed), shape, 0.05, smoothness)
            for seed in range(4)
        ]
        return ops.gradient(torch.cat(fields)).square().mean()

    assert slope(0.3) < 0.7 * slope(0.12)


@shapes
@pytest.mark.parametrize("labels", [5, 8, 11])
def test_every_structure_is_in_fixed_and_moving_image(shape, labels):
    pair = make_phantom_pairs(shape, num_labels=labels)[0]
    for side in ("fixed", "moving"):
        assert pair[f"{side}_labels"].unique().tolist() == list(range(labels + 1))


@full_sizes
def test_every_structure_has_texture_away_from_its_edges(shape):
    pair = make_phantom_pairs(shape, noise=0, bias_field=0)[0]
    for side in ("fixed", "moving"):
        for k in range(1, 9):
            inside = binary_erosion(pair[f"{side}_labels"][0].numpy() == k)
            assert pair[side][0].numpy()[inside].std() > 0.01


def test_smooth_noise_is_the_same_field_on_every_grid_and_decorrelates_with_distance():
    coarse, fine = (
        sample_smooth_noise(np.random.default_rng(0), 99, 0.05, [n, n]) for n in (30, 90)
    )
    torch.testing.assert_close(fine[..., 1::3, 1::3], coarse, atol=0.02, rtol=0.02)
    torch.testing.assert_close(fine.mean((2, 3)), torch.zeros(1, 99), atol=1e-5, rtol=0)
    for widths in (2, 4):
        apart = round(widths * 0.05 * 90)
        ends = [fine[..., 10:80, 10 : 80 - apart], fine[..., 10:80, 10 + apart : 80]]
        correlation = torch.corrcoef(torch.stack([end.flatten() for end in ends]))[0, 1]
        assert correlation == pytest.approx(np.exp(-((widths / 2) ** 2)), abs=0.05)


@pytest.mark.parametrize("radii", [(3.0, 3.0), (2.0, 2.0, 2.0)])
def test_depth_of_a_ball_is_the_distance_to_its_surface(radii):
    offset = torch.tensor(np.random.default_rng(0).normal(size=(len(radii), 50)))
    expected = radii[0] - offset.norm(dim=0)
    torch.testing.assert_close(
        compute_ellipsoid_depth(offset, torch.tensor(radii).double()), expected
    )


def test_pairs_collate_into_batches():
    batch = default_collate([*make_phantom_pairs((33, 40), count=2)])
    assert batch["fixed"].shape == (2, 1, 33, 40)
    assert batch["moving_points"].shape == (2, 64, 2)
    assert batch["name"] == ["synthetic-train-0000", "synthetic-train-0001"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"split": "training"}, "split='training'"),
        ({"ndim": 4}, "ndim=4"),
        ({"shape": [32, 32, 32]}, "3 numbers for ndim=2"),
        ({"shape": [32, -1]}, "too small"),
        ({"shape": 15}, "too small"),
        ({"seed": -1}, "seed=-1"),
        ({"num_labels": 4}, "num_labels=4"),
    ],
)
def test_invalid_settings_are_named(options, word):
    with pytest.raises(UserError, match=word):
        PhantomPairs(**{"split": "train", "ndim": 2, **options})


def test_more_structures_than_the_grid_resolves_are_refused():
    with pytest.raises(UserError, match="enlarge shape"):
        PhantomPairs("train", 2, 16, num_labels=60)[0]


def test_an_index_past_the_end_raises_index_error():
    data = make_phantom_pairs((16, 16), count=2)
    assert len(list(data)) == 2
    with pytest.raises(IndexError):
        data[2]
