import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.stats import kstest

from regnet_lab.data.synthesis.displacements.base import Choice, Sum, Zero, apply_separable
from regnet_lab.data.synthesis.displacements.gaussian import (
    HighFrequency,
    LowFrequency,
    MediumFrequency,
    PeakDisplacement,
    compute_blur_matrix,
    rescale_to_peaks,
    sample_spaced_voxels,
    spread_peaks,
)
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(37, 30), (20, 24, 22)])
SMALL = {"max_deform": 3.0, "sigma": 3.0, "border": 4.0}
frequencies = pytest.mark.parametrize(
    "fields",
    [
        LowFrequency(**SMALL),
        MediumFrequency(**SMALL, num_peaks=20),
        HighFrequency(**SMALL, min_peak_distance=6.0),
    ],
)


def generator(seed=0):
    return np.random.default_rng(seed)


def spacing_of(shape):
    return (1.0, 0.8, 1.3)[: len(shape)]


@pytest.mark.parametrize(("n", "sigma"), [(7, 1.3), (40, 3.7), (20, 25.0), (3, 8.0)])
def test_blur_matrix_is_the_gaussian_filter_of_scipy(n, sigma):
    x = generator().normal(size=(n, 3))
    expected = gaussian_filter1d(x, sigma, axis=0)
    np.testing.assert_allclose(
        compute_blur_matrix(n, sigma).double().numpy() @ x, expected, rtol=0, atol=1e-6
    )


@shapes
def test_separable_gaussian_equals_scipy_to_a_millionth(shape):
    rng, sigmas = generator(), (4.0, 2.5, 6.0)[: len(shape)]
    places = np.unique(rng.integers(0, shape, (40, len(shape))), axis=0)
    vectors = rng.uniform(-9, 9, (len(places), 2)).astype(np.float32)
    impulses = np.zeros((2, *shape))
    impulses[:, *places.T] = vectors.T
    expected = np.stack([gaussian_filter(component, sigmas) for component in impulses])
    matrices = [compute_blur_matrix(n, s) for n, s in zip(shape, sigmas, strict=True)]
    sparse = spread_peaks(torch.from_numpy(places), torch.from_numpy(vectors), matrices)
    dense = apply_separable(torch.from_numpy(impulses).float(), matrices)
    for blurred in (sparse, dense):
        assert np.abs(blurred.numpy() - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("offset", [-50.0, -0.3, 0.0, 0.3, 50.0])
def test_renormalisation_stretches_each_sign_to_its_impulses(offset):
    rng = generator()
    blurred = gaussian_filter(rng.normal(size=(15, 12)), 2) * 3 + offset
    places = np.unique(rng.integers(0, (15, 12), (9, 2)), axis=0)
    impulses = rng.uniform(-5, 5, len(places))
    expected = np.zeros_like(blurred)
    up, down = blurred > 0, blurred < 0
    if up.any():
        span = [blurred[up].min(), blurred[up].max()]
        expected[up] = np.interp(blurred[up], span, [0, impulses.max()])
    if down.any():
        lowest = min(0, impulses[down[*places.T]].min(initial=0))
        expected[down] = np.interp(blurred[down], [blurred[down].min(), 0], [lowest, 0])
    rescaled = rescale_to_peaks(*map(torch.from_numpy, (blurred, places, impulses)))
    np.testing.assert_allclose(rescaled, expected, atol=1e-12)


def test_renormalised_zero_stays_zero():
    places = torch.tensor([[1, 2]])
    assert not rescale_to_peaks(torch.zeros(4, 5), places, torch.tensor([0.0])).any()


@shapes
@frequencies
def test_largest_displacement_in_mm_is_the_largest_peak(shape, fields):
    spacing = spacing_of(shape)
    for seed in range(4):
        peaks = fields.sample_peaks(generator(seed), shape, spacing)
        u = fields(generator(seed), shape, spacing)
        assert u.shape == (1, len(shape), *shape)
        assert u.dtype == torch.float32
        for k, mm in enumerate(spacing):
            greatest = max(float(peaks.vectors[:, k].max()), 0)
            assert float(u[0, k].max()) * mm == pytest.approx(greatest, rel=1e-4)
            assert float(u[0, k].min()) * mm >= float(peaks.vectors[:, k].min()) * 1.0001


@shapes
def test_peaks_avoid_the_border_and_are_uniform_except_two_fixed_ones(shape):
    spacing = spacing_of(shape)
    fields = LowFrequency(max_deform=7, sigma=1, border=3.2, num_peaks=400)
    peaks = fields.sample_peaks(generator(), shape, spacing)
    millimetres = peaks.voxels * torch.tensor(spacing)
    far = (torch.tensor(shape) - 1 - peaks.voxels) * torch.tensor(spacing)
    assert millimetres.min() >= 3.2
    assert far.min() >= 3.2 - max(spacing) / 2
    assert kstest(peaks.vectors[2:].flatten().numpy(), "uniform", args=(-7, 14)).pvalue > 0.01
    still = LowFrequency(max_deform=7, sigma=1, border=3.2, num_peaks=3).sample_peaks(
        generator(), shape, spacing
    )
    assert (still.vectors != 0).all(1).tolist() == [False, False, True]
    reach = millimetres.min(0).values, far.min(0).values
    assert max(float(r.max()) for r in reach) < 3.2 + 2 * max(spacing)  # as far as they may


def test_the_last_of_several_peaks_on_a_voxel_is_used():
    class Same(LowFrequency):
        def sample_voxels(self, rng, shape, spacing):
            return np.array([[1, 1], [2, 1], [0, 3], [1, 1], [0, 3]])

    peaks = Same(max_deform=1, sigma=1, border=0).sample_peaks(generator(), (4, 5), (1, 1))
    every = generator().uniform(-1, 1, (5, 2)).astype(np.float32)
    assert peaks.voxels.tolist() == [[2, 1], [1, 1], [0, 3]]
    np.testing.assert_array_equal(peaks.vectors[1:], every[3:])
    assert not peaks.vectors[0].any()


@pytest.mark.parametrize("sigma", [3.0, 6.0])
def test_autocorrelation_of_fields_is_that_of_their_gaussian(sigma):
    spacing = (1.0, 1.5)
    fields = LowFrequency(max_deform=5, sigma=sigma, border=0, num_peaks=300)
    u = torch.cat([fields(generator(seed), (120, 80), spacing) for seed in range(12)]).double()
    for axis, mm in enumerate(spacing):
        for widths in (1, 2):  # white noise through a Gaussian correlates by exp(-(d / 2 sigma)^2)
            lag = round(widths * sigma / mm)
            near, far = u.narrow(2 + axis, 0, 60), u.narrow(2 + axis, lag, 60)
            correlation = torch.corrcoef(torch.stack([near.flatten(), far.flatten()]))[0, 1]
            assert correlation == pytest.approx(np.exp(-((lag * mm / sigma / 2) ** 2)), abs=0.06)


@shapes
def test_blobs_have_the_minimum_distance_and_fill_the_image(shape):
    spacing = spacing_of(shape)
    fields = HighFrequency(max_deform=3, sigma=2, border=3, min_peak_distance=5, num_peaks=10**6)
    for seed in range(3):
        places = fields.sample_peaks(generator(seed), shape, spacing).voxels.numpy()
        reach = np.rint(5 / np.array(spacing))
        apart = np.abs(places[:, None] - places) > reach
        assert (apart.any(-1) | np.eye(len(places), dtype=bool)).all()
        border = np.ceil(3 / np.array(spacing)).astype(int)
        box = tuple(slice(b, n - b) for b, n in zip(border, shape, strict=True))
        inner = np.stack(np.mgrid[box], -1)
        taken = (np.abs(inner[..., None, :] - places) <= reach).all(-1).any(-1)
        assert np.sum(~taken) <= 4
    assert (
        len(
            HighFrequency(**SMALL, min_peak_distance=1, num_peaks=5)
            .sample_peaks(generator(), shape, spacing)
            .voxels
        )
        == 5
    )


def test_blobs_are_placed_uniformly_among_free_voxels():
    rng = generator()
    first = np.concatenate([sample_spaced_voxels(rng, (4, 5), (1, 1), 1) for _ in range(2000)])
    counts = np.bincount(np.ravel_multi_index(first.T, (4, 5)), minlength=20)
    assert np.sum((counts - 100) ** 2 / 100) < 43  # chi-square, 19 degrees of freedom, p = 0.001
    second = np.array(
        [sample_spaced_voxels(rng, (4, 5), (0, 1), 2)[1] - first[0] for _ in range(50)]
    )
    assert len(np.unique(second, axis=0)) > 10


@pytest.mark.parametrize(
    "fields",
    [LowFrequency(**SMALL, planar=True), HighFrequency(**SMALL, min_peak_distance=5, planar=True)],
)
def test_planar_fields_have_no_displacement_across_slices(fields):
    u = fields(generator(), (18, 20, 16), (1, 1, 1))
    assert not u[:, 2].any()
    assert all(u[0, k].abs().max() > 1 for k in (0, 1))
    assert (u[0, 0].diff(dim=2) != 0).any()  # slices differ


@pytest.mark.parametrize("planar", [False, True])
def test_deformed_area_is_a_box_around_every_peak(planar):
    shape, spacing = (18, 30, 16), (1, 2, 1)
    fields = HighFrequency(**SMALL, min_peak_distance=6, deformed_area_half_width=4, planar=planar)
    peaks = fields.sample_peaks(generator(), shape, spacing)
    distance = np.abs(np.moveaxis(np.indices(shape), 0, -1)[..., None, :] - peaks.voxels.numpy())
    expected = (distance <= (4, 2, 1 if planar else 4)).all(-1).any(-1)
    area = fields.compute_deformed_area(peaks, shape, spacing)
    np.testing.assert_array_equal(area[0], expected)
    assert 0 < expected.mean() < 1


@shapes
def test_fields_depend_only_on_the_generator(shape):
    fields = HighFrequency(**SMALL, min_peak_distance=6)
    first, again, different = (fields(generator(s), shape, spacing_of(shape)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, different, atol=0.1)


def test_defaults_are_the_published_ones():
    settings = [
        (f.max_deform, f.sigma) for f in (LowFrequency(), MediumFrequency(), HighFrequency())
    ]
    assert settings == [(20, 35), (15, 25), (15, 20)]
    assert (HighFrequency().min_peak_distance, HighFrequency().deformed_area_half_width) == (40, 20)
    for fields in (LowFrequency(), HighFrequency()):
        assert (fields.num_peaks, fields.border, fields.planar) == (100, 33, False)


def test_published_fields_reach_their_maximum_and_do_not_fold():
    u = MediumFrequency()(generator(), (300, 280), (1, 1))
    assert 13 < u.abs().max() <= 15
    slope = np.stack([np.stack(np.gradient(c)) for c in u[0].numpy()])
    matrix = np.moveaxis(slope, (0, 1), (-2, -1)) + np.eye(2)
    assert np.linalg.det(matrix).min() > 0


def test_too_small_images_are_refused_naming_the_border():
    with pytest.raises(UserError, match=r"border=33 mm .* 64 x 200 voxels"):
        LowFrequency()(generator(), (64, 200), (1, 1))
    LowFrequency()(generator(), (64, 200), (1.1, 1))
    with pytest.raises(
        UserError, match=r"distance=40 mm leaves room for at most 2 .* 44 x 2 voxels"
    ):
        HighFrequency()(generator(), (110, 68), (1, 1))
    HighFrequency()(generator(), (110, 110), (1, 1))


@pytest.mark.parametrize("key", ["max_deform", "sigma", "num_peaks", "border", "min_peak_distance"])
def test_negative_settings_are_named(key):
    with pytest.raises(UserError, match=f"{key}=-1"):
        HighFrequency(**{key: -1})
    with pytest.raises(UserError, match="sigma=0"):
        PeakDisplacement(max_deform=1, sigma=0)


class Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, rng, shape, spacing):
        return torch.full((1, len(shape), *shape), float(self.value))


@pytest.mark.parametrize(
    ("fields", "weights", "shares"),
    [
        ([Constant(0), Constant(1), Constant(2)], None, (1 / 3, 1 / 3, 1 / 3)),
        ([Constant(0), Constant(1), Constant(2)], [6, 3, 1], (0.6, 0.3, 0.1)),
        ({"b": Constant(0), "a": Constant(2)}, {"a": 0.2, "b": 0.8}, (0.8, 0, 0.2)),
    ],
)
def test_choice_draws_generators_in_proportion_to_their_weights(fields, weights, shares):
    choice, rng = Choice(fields, weights), generator()
    drawn = [int(choice(rng, (1, 1), (1, 1))[0, 0]) for _ in range(1500)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 1500, shares, atol=0.05)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [([], None), ([Zero()], [0]), ([Zero()], [1, 1]), ({"a": Zero()}, {"b": 1}), ([Zero()], [-1])],
)
def test_choice_refuses_weights_that_do_not_fit(fields, weights):
    with pytest.raises(UserError, match="weights"):
        Choice(fields, weights)


@shapes
def test_sum_adds_the_fields_of_its_generators_in_order(shape):
    spacing, rng = spacing_of(shape), generator(3)
    parts = [LowFrequency(**SMALL), Constant(0.5), HighFrequency(**SMALL, min_peak_distance=5)]
    expected = sum(part(rng, shape, spacing) for part in parts)
    torch.testing.assert_close(Sum(parts)(generator(3), shape, spacing), expected)
    with pytest.raises(UserError, match="Sum"):
        Sum({})
