"""Fields as the published settings make them: largest, spatial frequency, classes, folds."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.synthesis.displacements.masked_image import MaskedImage
from regnet_lab.evaluation.displacement_stats import compute_displacement_stats

SHAPE, MM = (80, 76, 72), 4.0  # 320 x 304 x 288 mm
THRESHOLDS = (1.5, 4.0, 8.0)  # published classes of the first version, mm
SEEDS = range(3)
PEAKS = {"low": (20, 35), "medium": (15, 25), "high": (15, 20)}  # largest and sigma, mm


def average_stats(generator, *grid):
    """Means over some fields, and the classes counted once more."""
    stats = []
    for seed in SEEDS:
        u = generator(np.random.default_rng(seed), *grid)[0]
        field_stats = compute_displacement_stats(u, torch.full((3,), MM), THRESHOLDS)
        length = np.linalg.norm(u.double().numpy() * MM, axis=0)
        counts = np.histogram(length, [0, *THRESHOLDS, np.inf])[0] / length.size * 100
        shares = [
            value for name, value in field_stats.items() if name.startswith(("below", "above"))
        ]
        np.testing.assert_allclose(shares, counts, atol=0.01)
        stats.append(field_stats)
    return {name: np.mean([field_stats[name] for field_stats in stats]) for name in stats[0]}


@pytest.fixture
def stats_2017(composed):
    """Statistics of the first version's three frequencies with the settings of its YAML."""
    cfg = composed("train", "data=synthetic_dvf_2017").data.dataset.displacement.fields
    return {name: average_stats(instantiate_config(cfg[name]), SHAPE, (MM,) * 3) for name in PEAKS}


def test_2017_fields_have_the_published_magnitude_and_wavelength(stats_2017):
    for name, (largest, sigma) in PEAKS.items():
        stats = stats_2017[name]
        assert 0.98 * largest < stats["largest_mm"] <= largest
        # white noise blurred by sigma: |du/dx|^2 / u^2 = 1 / (2 sigma^2) along each axis
        assert stats["wavelength_mm"] == pytest.approx(2 * np.pi * 2**0.5 * sigma, rel=0.08)
        assert stats["folds_percent"] == 0
        assert stats["least_determinant"] > 0.05
        for share in ("below_1.5_mm", "below_4_mm", "below_8_mm", "above"):
            assert stats[f"{share}_percent"] > 5  # every class has voxels to learn from
    assert stats_2017["low"]["above_percent"] > 2 * stats_2017["medium"]["above_percent"]
    assert (
        stats_2017["low"]["below_1.5_mm_percent"] < stats_2017["high"]["below_1.5_mm_percent"] / 2
    )


STAGES = {  # largest, knots and ratio of one frequency, knots and sigma of mixed, shift: mm
    1: (
        (7, 15),
        [(50, 0.5), (45, 1), (35, 1), (25, 1), (20, 1)],
        ([(50,) * 3, (40,) * 3, (25, 25, 35), (20, 20, 30)], (5, 10)),
    ),
    2: (
        (15, 22),
        [(60, 0.5), (50, 1), (45, 1), (40, 1), (35, 1)],
        ([(60,) * 3, (50, 50, 40), (40, 40, 80), (35, 35, 80)], (7, 12)),
    ),
    4: (
        (20, 30),
        [(80, 1), (70, 1), (60, 1), (50, 1), (45, 1)],
        ([(80,) * 3, (60,) * 3, (50,) * 3, (45, 45, 60)], (10, 15)),
    ),
}


def chest():
    """Textured lungs in a body that fills the image."""
    x = np.moveaxis(np.indices(SHAPE), 0, -1) / (np.array(SHAPE) - 1) * 2 - 1
    lung = np.linalg.norm(x, axis=-1) < 0.7
    texture = gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 1)
    image = torch.from_numpy(np.where(lung, 0.1 + 0.5 * texture, 0.75)).float()
    body = torch.ones(SHAPE, dtype=torch.bool)
    return MaskedImage(image, (MM,) * 3, body, torch.from_numpy(lung))


def wavelength_of_splines(knots, background, smoothing=0.8):
    """2 pi / sqrt(E u'^2 / E u^2), mm, of cubic B-splines with white coefficients, these blurred
    by ``smoothing`` knots and the field by ``background`` mm: from their power spectrum.
    """
    f = np.linspace(0, 6 / knots, 20_001)
    w = 2 * np.pi * f
    power = np.sinc(f * knots) ** 8 * np.exp(
        -((smoothing * knots * w) ** 2) - (background * w) ** 2
    )
    return 2 * np.pi / np.sqrt((w**2 * power).sum() / power.sum())


@pytest.mark.parametrize("stage", STAGES)
def test_2019_fields_have_the_published_magnitude_and_wavelength(stage, composed):
    cfg = composed("train", f"data=regnet_2019_s{stage}").data.dataset
    methods = {name: instantiate_config(method) for name, method in cfg.deformations.items()}
    (largest, shift), single, (knots, sigma) = STAGES[stage]
    kinds = {"respiratory": 4, "single": 5, "mixed": 4}
    assert [*methods] == [f"{k}{n}" for k, count in kinds.items() for n in range(count)] + ["zero"]
    place = chest()
    for n, (distance, ratio) in enumerate(single):
        field, stats = methods[f"single{n}"], average_stats(methods[f"single{n}"], place)
        assert (field.knot_spacing, field.amplitude_ratio, field.max_deform) == (
            distance,
            ratio,
            largest,
        )
        assert ratio * largest / 4 < stats["largest_mm"] <= ratio * largest * 1.0001
        expected = wavelength_of_splines(distance, 8 * ratio * largest / 7)
        assert stats["wavelength_mm"] == pytest.approx(expected, rel=0.2)  # the border is still
        assert stats["folds_percent"] == 0
    for n, distances in enumerate(knots):
        field = methods[f"mixed{n}"]
        assert (*field.knot_spacing, *field.sigma, field.max_deform) == (
            *distances,
            *sigma,
            largest,
        )
        assert field.growth_steps == (200 if n == 0 else 150)
    for n in range(4):
        field = methods[f"respiratory{n}"]
        assert (field.knot_spacing, field.diaphragm_shift, field.chest_scale) == (
            single[n][0],
            shift,
            0.12,
        )
    mixed, breath = (
        average_stats(methods["mixed3"], place),
        average_stats(methods["respiratory0"], place),
    )
    assert 0.5 * largest < mixed["largest_mm"] <= largest * 1.0001
    assert mixed["folds_percent"] < 0.01
    assert mixed["below_1.5_mm_percent"] > 50  # shapes that move in what is still
    assert mixed["wavelength_mm"] < breath["wavelength_mm"] / 2
    assert largest < breath["largest_mm"] <= 1.2 * largest * 1.0001
    assert breath["folds_percent"] == 0
    assert average_stats(methods["zero"], place)["below_1.5_mm_percent"] == 100
