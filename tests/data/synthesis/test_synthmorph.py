"""Generated pairs: one anatomy, two deformations, two scanners, nothing else in common."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from regnet_lab import ops
from regnet_lab.data.synthesis.synthmorph import RandomDiffeomorphism, SynthMorphPairs
from regnet_lab.data.synthesis.synthmorph_images import (
    LabelAppearance,
    RandomContrast,
    normalize_percentiles,
)
from regnet_lab.data.synthesis.synthmorph_labels import RandomShapes
from regnet_lab.errors import UserError

GRIDS = pytest.mark.parametrize("shape", [(40, 36), (24, 20, 22)])
FAULTLESS = {
    "texture": (0, 0),
    "blur": (0, 0),
    "slice_thickness": (1, 1),
    "bias_field": (0, 0),
    "noise": (0, 0),
    "gamma_std": 0,
    "invert_probability": 0,
    "crop_probability": 0,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def inside(u, margin):
    """A field (1, D, *shape) away from the border."""
    return u[(slice(None), slice(None), *[slice(margin, -margin)] * (u.ndim - 2))]


@GRIDS
def test_the_true_displacement_aligns_the_labels(shape):
    pairs = SynthMorphPairs(
        "train",
        shape,
        deformation=RandomDiffeomorphism(amplitude=(0.04, 0.05), smoothness=(0.15, 0.3)),
    )
    before, after = [], []
    for index in range(4):
        pair = pairs[index]
        fixed, moving = pair["fixed_labels"].numpy()[0], pair["moving_labels"].numpy()[0]
        points = np.indices(shape) + pair["displacement"].numpy()
        moved = map_coordinates(moving, points, order=0, mode="nearest")
        before.append((fixed == moving).mean())
        after.append((fixed == moved).mean())
    assert np.mean(after) > 0.9
    assert np.mean(after) > np.mean(before) + 0.1


@GRIDS
def test_a_diffeomorphism_and_its_inverse_cancel_and_do_not_fold(shape):
    forward, inverse = RandomDiffeomorphism(amplitude=(0.05, 0.05), smoothness=(0.2, 0.3))(
        rng(), shape
    )
    assert forward.abs().mean() > 0.5
    assert inside(ops.compose(forward, inverse), 5).abs().max() < 0.2
    assert (ops.jacobian_determinant(forward) > 0).all()


@GRIDS
def test_without_velocity_a_diffeomorphism_is_affine_about_the_center(shape):
    u, _ = RandomDiffeomorphism(amplitude=(0, 0), affine_std=0.1, max_translation=0.0)(rng(), shape)
    slope = ops.gradient(u)
    assert slope.abs().max() > 0.05
    assert (slope - slope.mean(tuple(range(3, slope.ndim)), keepdim=True)).abs().max() < 1e-3
    assert u.mean(tuple(range(2, u.ndim))).abs().max() < 1e-3


@GRIDS
def test_shape_anatomies_are_functions_of_the_point(shape):
    anatomy = RandomShapes(
        num_regions=(6, 6), wall_probability=1.0, body_probability=1.0, body_radius=(0.7, 0.8)
    )(rng(), shape)
    x = ops.identity_grid(shape, torch.zeros(()))
    labels, texture = anatomy(x)
    step = torch.tensor([2.0, 1.0, 3.0][: len(shape)]).view(1, -1, *[1] * len(shape))
    shifted, moved = anatomy(x + step)
    original_part = tuple(slice(int(s), None) for s in step.flatten())
    shifted_part = tuple(
        slice(None, n - int(s)) for n, s in zip(shape, step.flatten(), strict=True)
    )
    assert torch.equal(shifted[0, 0][shifted_part], labels[0, 0][original_part])
    assert torch.allclose(moved[0, :, *shifted_part], texture[0, :, *original_part], atol=1e-4)
    assert set(labels.unique().tolist()) <= set(range(anatomy.num_labels + 1))
    assert labels.max() > 6  # some walls are seen
    corners = labels[0, 0][tuple([0, -1] for _ in shape)]
    assert not corners.any()
    assert labels.any()


def test_random_shapes_stay_within_their_ranges():
    regions_only = RandomShapes(num_regions=(3, 3), wall_probability=0.0, body_probability=0.0)(
        rng(), (32, 32)
    )
    assert regions_only.num_labels == 6
    assert not regions_only.wall.any()
    labels, _ = regions_only(ops.identity_grid((32, 32), torch.zeros(())))
    assert set(labels.unique().tolist()) <= {1, 2, 3}
    several = [
        len(RandomShapes(num_regions=(2, 5))(rng(seed), (16, 16)).wall) for seed in range(40)
    ]
    assert set(several) == {2, 3, 4, 5}


def test_without_artifacts_each_label_has_its_own_intensity():
    labels = torch.from_numpy(rng().integers(0, 4, (1, 1, 20, 30)))
    look = LabelAppearance(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.zeros(4, 2))
    image = RandomContrast(**FAULTLESS)(rng(), look, labels, torch.zeros(1, 2, 20, 30))
    assert torch.allclose(image, look.intensity[labels], atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "value"),
    [
        ("blur", (1, 1)),
        ("slice_thickness", (3, 3)),
        ("bias_field", (0.3, 0.3)),
        ("noise", (0.05, 0.05)),
        ("gamma_std", 0.5),
        ("invert_probability", 1),
        ("crop_probability", 1),
    ],
)
def test_every_artifact_changes_the_image_and_keeps_its_range(fault, value):
    labels = torch.from_numpy(rng().integers(0, 4, (1, 1, 20, 30)))
    look = LabelAppearance(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.zeros(4, 2))
    made = RandomContrast(**{**FAULTLESS, fault: value})
    images = [made(rng(seed), look, labels, torch.zeros(1, 2, 20, 30)) for seed in range(4)]
    assert any((image - look.intensity[labels]).abs().mean() > 0.01 for image in images)
    assert all(image.min() >= 0 and image.max() <= 1 for image in images)


def test_inversion_reverses_intensities_and_cropping_leaves_a_box():
    labels = torch.ones(1, 1, 20, 30, dtype=torch.int64)
    labels[..., :15] = 2
    look = LabelAppearance(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3, 2))
    turned = RandomContrast(**{**FAULTLESS, "invert_probability": 1})(
        rng(), look, labels, torch.zeros(1, 2, 20, 30)
    )
    assert torch.allclose(turned, 1 - look.intensity[labels])
    cropped = RandomContrast(crop_probability=1, crop_margin=(0.2, 0.2)).sample_field_of_view(
        rng(), (20, 30)
    )
    expected = torch.zeros(20, 30)
    expected[4:16, 6:24] = 1
    assert torch.equal(cropped, expected)


def test_percentiles_are_mapped_to_zero_and_one():
    image = torch.linspace(-3, 7, 1001)[None, None]
    assert torch.allclose(
        normalize_percentiles(image), ((image + 2.95) / 9.9).clamp(0, 1), atol=1e-4
    )


def levels(image, labels):
    """Mean intensity of every label that is taught."""
    return np.array([float(image[labels == k].mean()) for k in labels.unique() if k])


def test_contrasts_are_independent_unless_they_are_shared():
    def correlation(alike):
        pairs = SynthMorphPairs(
            "train", (48, 48), same_contrast_probability=alike, contrast=RandomContrast(**FAULTLESS)
        )
        sides = [
            [levels(pair[side], pair[f"{side}_labels"]) for side in ("fixed", "moving")]
            for pair in (pairs[i] for i in range(12))
        ]
        fixed, moving = (
            np.concatenate(s)
            for s in zip(*(s for s in sides if len(s[0]) == len(s[1])), strict=True)
        )
        return np.corrcoef(fixed, moving)[0, 1]

    assert correlation(1.0) > 0.95
    assert abs(correlation(0.0)) < 0.6


@GRIDS
def test_items_depend_only_on_seed_split_and_index(shape):
    first, again = (SynthMorphPairs("train", shape, seed=3)[5] for _ in range(2))
    others = SynthMorphPairs("train", shape, seed=4)[5], SynthMorphPairs("val", shape, seed=3)[5]
    for key in ("fixed", "moving", "displacement", "fixed_labels", "moving_labels"):
        assert torch.equal(first[key], again[key])
    assert all(not torch.equal(first["fixed"], different["fixed"]) for different in others)
    assert first["fixed"].shape == (1, *shape)
    assert first["displacement"].shape == (len(shape), *shape)
    assert first["fixed"].dtype == torch.float32


def test_pairs_have_at_most_the_given_number_of_labels():
    pairs = SynthMorphPairs(
        "train", (48, 48), max_labels=3, anatomy=RandomShapes(num_regions=(9, 9))
    )
    for index in range(4):
        pair = pairs[index]
        assert pair["fixed_labels"].unique().tolist() == [0, 1, 2, 3]
        assert set(pair["moving_labels"].unique().tolist()) <= {0, 1, 2, 3}


def test_sizes_may_differ_between_splits():
    assert len(SynthMorphPairs("val", (16, 16), num_pairs={"train": 9, "val": 2})) == 2
    with pytest.raises(IndexError):
        SynthMorphPairs("val", (16, 16), num_pairs=2)[2]


@pytest.mark.parametrize(
    ("changed", "named"), [({"split": "all"}, "split='all'"), ({"shape": (16, 8)}, "16 voxels")]
)
def test_invalid_settings_are_named(changed, named):
    with pytest.raises(UserError, match=named):
        SynthMorphPairs(**{"split": "train", "shape": (16, 16)} | changed)
