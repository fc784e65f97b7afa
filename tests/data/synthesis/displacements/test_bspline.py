import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from regnet_lab import ops
from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.data.synthesis.displacements.base import Zero
from regnet_lab.data.synthesis.displacements.bspline import (
    MixedFrequency,
    SingleFrequency,
    Translation,
    compute_spline_matrix,
    detect_edges,
    grow_random_shapes,
    sample_half_box,
    sample_spline_field,
)
from regnet_lab.data.synthesis.displacements.gaussian import LowFrequency
from regnet_lab.data.synthesis.displacements.masked_image import (
    MaskAgnosticDisplacement,
    MaskedImage,
    segment_body,
    smooth_field,
)
from regnet_lab.data.synthesis.displacements.respiratory import Respiratory, compute_decay
from regnet_lab.data.synthesis.intensity import (
    add_noise,
    add_occlusions,
    apply_sponge_model,
    make_ellipsoid_mask,
)
from regnet_lab.data.synthesis.regnet_2019 import RegNet2019Pairs
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(30, 26), (22, 20, 24)])


def generator(seed=0):
    return np.random.default_rng(seed)


def thorax(shape, number=0):
    """Air about a textured body with a hollow, the lung, in it."""
    x = np.moveaxis(np.indices(shape), 0, -1) / (np.array(shape) - 1) * 2 - 1
    texture = gaussian_filter(generator(number).normal(size=shape), 1.5)
    inside, lung = (np.linalg.norm(x, axis=-1) < r for r in (0.95, 0.6))
    image = np.where(lung, 0.15, np.where(inside, 0.75, 0)) + 0.3 * texture * lung
    return torch.from_numpy(image).float(), torch.from_numpy(inside), torch.from_numpy(lung)


def make_masked_thorax(shape, spacing=(2.0, 1.5, 2.5)):
    image, inside, lung = thorax(shape)
    return MaskedImage(image, spacing[: len(shape)], inside, lung)


@pytest.mark.parametrize(("n", "intervals"), [(17, 4), (5, 7), (9, 1)])
def test_spline_matrix_is_scipy_s_basis(n, intervals):
    knots = np.arange(-3, intervals + 4)
    at = np.linspace(0, intervals, n)
    at[-1] -= 1e-9
    expected = BSpline.design_matrix(at, knots, 3).toarray()
    np.testing.assert_allclose(compute_spline_matrix(n, intervals), expected, atol=1e-6)


@shapes
def test_spline_fields_are_bounded_smooth_and_zero_at_the_border(shape):
    largest, masked_image = 6.0, make_masked_thorax(shape)
    for seed in range(4):
        rng = generator(seed)
        u = sample_spline_field(rng, masked_image, [8.0] * len(shape), (0, 1.7), largest, 0.3, 3)
        assert u.shape == (len(shape), *shape)
        assert 0.5 < u.abs().max() <= 1.7 * largest
        for axis in range(len(shape)):
            assert u.movedim(axis + 1, 0)[[0, -1]].abs().max() < 1e-5 * largest
    mixed = sample_spline_field(
        generator(), masked_image, [8.0] * len(shape), (1, 2), largest, 2.0, 1
    )
    raw = sample_spline_field(
        generator(), masked_image, [8.0] * len(shape), (0, 2), largest, 2.0, 1
    )
    assert mixed.abs().max() > raw.abs().max()  # scaled up to the lower bound


@shapes
def test_single_frequency_fields_are_bounded_and_end_with_the_body(shape):
    masked_image = make_masked_thorax(shape)
    fields = SingleFrequency(max_deform=4.0, knot_spacing=12.0, zero_border=0, background=0.0)
    u = fields(generator(), masked_image)
    assert u.shape == (1, len(shape), *shape)
    assert not u[0][:, ~masked_image.body].any()
    millimetres = u[0] * torch.tensor(masked_image.spacing).view(-1, *[1] * len(shape))
    assert 1 < millimetres.abs().max() <= 4.0001
    attenuated = SingleFrequency(
        max_deform=4.0, knot_spacing=12.0, zero_border=0, background=0.0, amplitude_ratio=0.1
    )
    assert (
        attenuated(generator(), masked_image).abs().amax() * min(masked_image.spacing)
    ) <= 0.4001
    soft = SingleFrequency(max_deform=4.0, knot_spacing=12.0, zero_border=0)(
        generator(), masked_image
    )
    rough = u.diff(dim=2).abs().max() / u.abs().max()
    assert soft.diff(dim=2).abs().max() / soft.abs().max() < 0.7 * rough


def test_finer_knots_make_higher_frequencies():
    masked_image = make_masked_thorax((240, 200), (1.0, 1.0))

    def roughness(knots):
        fields = SingleFrequency(max_deform=5.0, knot_spacing=knots, zero_border=0, background=0.0)
        u = torch.cat([fields(generator(seed), masked_image) for seed in range(6)])
        inner = u[..., 70:170, 70:130]
        return float(inner.diff(dim=2).square().mean() / inner.square().mean()) ** 0.5

    coarse, middle, fine = (roughness(k) for k in (24.0, 12.0, 6.0))
    assert 1.5 < middle / coarse < 2.7
    assert 1.5 < fine / middle < 2.7


@shapes
def test_mixed_frequency_fields_are_zero_in_part_of_the_lung(shape):
    masked_image = make_masked_thorax(shape)
    fields = MixedFrequency(
        max_deform=4.0,
        knot_spacing=[8.0] * len(shape),
        sigma=(1.0, 2.0),
        growth_steps=30,
        radius=5.0,
    )
    u = fields(generator(), masked_image)[0] * torch.tensor(masked_image.spacing).view(
        -1, *[1] * len(shape)
    )
    assert 0.5 < u.abs().max() <= 4.0001
    still = (u.abs() < 0.05)[:, masked_image.lung].float().mean(1)
    assert (still > 0.02).all()
    assert (still < 0.98).all()
    apart = (u[0].abs() < 0.05) != (u[1].abs() < 0.05)
    assert apart.any()  # each component has its own shape
    with pytest.raises(UserError, match="needs a lung mask"):
        fields(
            generator(), MaskedImage(masked_image.image, masked_image.spacing, masked_image.body)
        )


@shapes
def test_edges_lie_between_lung_and_body(shape):
    masked_image = make_masked_thorax(shape)
    edges = detect_edges(masked_image, 0.05, 0.2)
    far = np.linalg.norm(
        np.moveaxis(np.indices(shape), 0, -1) / (np.array(shape) - 1) * 2 - 1, axis=-1
    )
    assert edges.sum() > 10
    near = np.minimum(np.abs(far - 0.6), np.abs(far - 0.95)) < 0.25
    assert near[edges].mean() > 0.8


@shapes
def test_shapes_grow_from_seeds(shape):
    seeds = np.zeros(shape, bool)
    seeds[tuple(n // 2 for n in shape)] = True
    assert grow_random_shapes(generator(), seeds, 1, [3] * len(shape)).sum() == 3 ** len(shape)
    assert not grow_random_shapes(
        generator(), seeds, 2, [3] * len(shape)
    ).any()  # emptied about its only seed
    assert not grow_random_shapes(generator(), seeds & False, 20, [3] * len(shape)).any()
    element = sample_half_box(generator(), len(shape))
    assert element.sum() == 9 ** (len(shape) - 1) * 5
    assert element[(4,) * len(shape)]


@shapes
def test_translations_are_constant_and_zero_along_some_axes(shape):
    masked_image, fields = make_masked_thorax(shape), Translation(max_deform=5.0)
    drawn = torch.stack([fields(generator(seed), masked_image)[0] for seed in range(200)])
    assert not drawn.flatten(2).diff(dim=2).any()
    shift = drawn.flatten(2)[..., 0] * torch.tensor(masked_image.spacing)
    assert shift.abs().max() <= 5
    assert shift.abs().max() > 4.5
    assert 0.1 < (shift == 0).float().mean() < 0.3


def test_breathing_decays_from_one_below_the_lung_to_zero_above_its_middle():
    f = compute_decay(torch.tensor([-5.0, 0.0, 3.0, 10.0, 12.0]), 10.0)
    expected = [1, 1, 1 - np.log(1 + 1.3 * 0.3) / np.log(2.3), 0, 0]
    np.testing.assert_allclose(f, expected, atol=1e-6)


def test_breathing_moves_the_diaphragm_cranially_and_the_chest_wall_posteriorly():
    masked_image = make_masked_thorax((22, 20, 24))
    fields = Respiratory(max_deform=7.0, diaphragm_shift=10.0, knot_spacing=20.0)
    u = fields.sample_breathing(generator(), masked_image)
    lung = masked_image.lung.numpy()
    bottom, top = np.flatnonzero(lung.any((0, 1)))[[0, -1]]
    assert 8 <= u[2, 0, 0, 0] <= 11
    assert torch.equal(u[2, ..., : bottom + 1], u[2, :1, :1, :1].expand(22, 20, bottom + 1))
    assert (u[2].diff(dim=2) <= 1e-6).all()
    assert not u[..., (bottom + top) // 2 + 1 :].any()
    assert not u[0].any()
    slope = u[1, 3, :, 0].diff() / 1.5
    torch.testing.assert_close(slope, slope[:1].expand_as(slope))
    assert -0.132 <= slope[0] <= -0.096
    posterior = np.flatnonzero(lung.any((0, 2)))[-1]
    still = np.interp(0, -u[1, 3, :, 0].numpy()[::-1][::-1], np.arange(20) * 1.5)
    assert 2 <= posterior * 1.5 - still <= 12
    whole = fields(generator(), masked_image)[0] * torch.tensor(masked_image.spacing).view(
        -1, 1, 1, 1
    )
    assert 3 < whole[2].max() <= 1.2 * 7.0001
    with pytest.raises(UserError, match="needs 3D images"):
        fields(generator(), make_masked_thorax((30, 26)))


@shapes
def test_each_component_is_smoothed_with_its_own_gaussian(shape):
    u = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    spacing = (2.0, 1.5, 2.5)[: len(shape)]
    sigma = [3.0, 0.0]
    expected = gaussian_filter(u[0].numpy(), [3 / mm for mm in spacing])
    smoothed = smooth_field(u, sigma, spacing)
    np.testing.assert_allclose(smoothed[0], expected, atol=1e-5)
    assert torch.equal(smoothed[1], u[1])


@shapes
def test_the_body_mask_contains_the_lungs(shape):
    image, inside, _ = thorax(shape)
    assert (segment_body(image, 0.5) == inside).float().mean() > 0.99
    assert segment_body(image * 0, 0.5).all()


@shapes
def test_sponge_model_preserves_mass_under_stretching(shape):
    matrix = 0.1 * generator(3).normal(size=(len(shape),) * 2)
    u = torch.from_numpy(np.einsum("ij,j...->i...", matrix, np.indices(shape))).float()[None]
    inside = thorax(shape)[1]
    image = torch.full((1, 1, *shape), 0.4)
    intensities = apply_sponge_model(generator(), image, u, inside, spread=0.0)[0, 0]
    expected = 0.4 * np.clip(np.linalg.det(np.eye(len(shape)) + matrix), 0.7, 1.3)
    assert abs(expected - 0.4) > 0.01
    np.testing.assert_allclose(intensities[inside], expected, rtol=1e-4)
    np.testing.assert_allclose(intensities[~inside], 0.4)
    factors = [
        float(apply_sponge_model(generator(s), image, 0 * u, inside).max()) / 0.4 for s in range(40)
    ]
    assert min(factors) >= 1  # beyond the body, nothing changes
    assert 1.05 < max(factors) <= 1.1001


def test_noise_has_the_given_standard_deviation_and_mean():
    image = torch.zeros(1, 1, 60, 60)
    drawn = [add_noise(generator(s), image, 0.02, 0.1) for s in range(30)]
    means = torch.tensor([d.mean() for d in drawn])
    assert means.abs().max() < 0.11
    assert means.std() > 0.03
    assert drawn[0].std() == pytest.approx(0.02, rel=0.1)


@shapes
def test_occlusions_lie_in_the_lung_and_fade(shape):
    image, _, lung = thorax(shape)
    size = {"count": 2, "values": (0.9, 0.9), "axes": (4.0, 5.0)}
    occluded, hidden = add_occlusions(
        generator(), image[None, None], lung, (1.0,) * len(shape), **size
    )
    assert hidden.any()
    assert not hidden[~lung].any()
    assert torch.equal(occluded[0, 0][~hidden], image[~hidden])
    share = ((occluded[0, 0] - image) / (0.9 - image))[hidden]
    assert share.min() == pytest.approx(0.2, abs=0.02)
    assert make_ellipsoid_mask(shape, [5.0] * len(shape), [2.0] * len(shape)).sum() == sum(
        np.sum((np.array(i) - 5) ** 2) <= 4 for i in np.ndindex(*shape)
    )
    nothing = add_occlusions(generator(), image[None, None], lung & False, (1.0,) * len(shape))[0]
    assert torch.equal(nothing[0, 0], image)


METHODS = {
    "single": SingleFrequency(max_deform=4.0, knot_spacing=12.0, zero_border=0),
    "low": MaskAgnosticDisplacement(
        LowFrequency(max_deform=3.0, sigma=6.0, border=4.0, num_peaks=20)
    ),
    "zero": MaskAgnosticDisplacement(Zero()),
}


def data(shape, split="train", methods=None, **options):
    def images(split):
        pairs = []
        for number in range(2):
            image, _, lung = thorax(shape, number)
            pair = make_self_pair(image[None], f"t{number}", [2.0, 1.5, 2.5][: len(shape)])
            pairs.append({**pair, "moving_mask": lung[None].float()})
        return pairs

    field = SingleFrequency(max_deform=5.0, knot_spacing=12.0, zero_border=0)
    return RegNet2019Pairs(split, images, methods or METHODS, field, **options)


@shapes
def test_every_image_and_next_image_is_deformed_by_every_method(shape):
    pairs = [data(shape, intensity_models=["clean"])[i] for i in range(8)]
    assert [p["name"].split("-")[:2] for p in pairs[:6]] == [
        [f"t{i}", m] for m in METHODS for i in (0, 1)
    ]
    for pair in pairs:
        expected = ops.warp(pair["moving"][None], pair["displacement"][None])[0]
        torch.testing.assert_close(pair["fixed"], expected)
        assert pair["fixed_mask"].shape == pair["fixed"].shape
    assert torch.equal(pairs[0]["moving"], pairs[2]["moving"])
    assert not torch.equal(pairs[0]["moving"], pairs[6]["moving"])  # a next image
    assert not torch.equal(pairs[0]["displacement"], pairs[6]["displacement"])
    assert not pairs[4]["displacement"].any()


@shapes
@pytest.mark.parametrize("look", ["sponge", "noise", "occluded"])
def test_an_intensity_model_changes_only_the_deformed_image(shape, look):
    clean, changed = (
        data(shape, intensity_models=["clean"])[0],
        data(shape, intensity_models=[look])[0],
    )
    assert look in changed["name"]
    assert torch.equal(clean["displacement"], changed["displacement"])
    assert torch.equal(clean["moving"], changed["moving"])
    assert not torch.equal(clean["fixed"], changed["fixed"])


@shapes
def test_landmarks_lie_in_the_lung_and_follow_the_field(shape):
    pair, bare = data(shape, num_points=30)[0], data(shape)[0]
    start = pair["fixed_points"].long()
    assert len({*map(tuple, start.tolist())}) == 30
    assert pair["fixed_mask"][(0, *start.T)].all()
    moved = start + pair["displacement"][(slice(None), *start.T)].T
    torch.testing.assert_close(pair["moving_points"], moved)
    assert "fixed_points" not in bare
    assert torch.equal(pair["fixed"], bare["fixed"])


@shapes
def test_items_depend_only_on_seed_split_and_index(shape):
    first, again = data(shape), data(shape)
    again[7]
    for key, value in first[6].items():
        assert value == again[6][key] if key == "name" else torch.equal(value, again[6][key])
    for different in (data(shape, seed=1), data(shape, "val")):
        assert not torch.equal(different[0]["displacement"], first[0]["displacement"])
    with pytest.raises(IndexError):
        data(shape, num_pairs={"train": 3})[3]


def test_invalid_settings_are_refused():
    with pytest.raises(UserError, match="split='all'"):
        data((30, 26), "all")
    with pytest.raises(UserError, match="wet"):
        data((30, 26), intensity_models=["clean", "wet"])
