import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d, map_coordinates

from regnet_lab.data.synthesis.displacements.affine_nonrigid import Affine, NonRigid, WhiteNoise

shapes = pytest.mark.parametrize("shape", [(23, 40), (20, 26, 18)])
STILL = {
    "centre_shift": (0, 0),
    "translation": (0, 0),
    "rotation": (0, 0),
    "shear": (0, 0),
    "scales": ((1, 1),),
}


def generator(seed=0):
    return np.random.default_rng(seed)


def field(maker, shape, seed=0):
    return maker(generator(seed), shape, (1.0,) * len(shape))


def is_diagonal(matrix):
    return np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-9


@shapes
def test_affine_field_is_the_inverse_of_its_matrix(shape):
    affine = Affine()
    u = field(affine, shape)[0].double().numpy()
    matrix = affine.sample_matrix(generator(), shape)[0].numpy()
    pulled = np.indices(shape) + u
    mapped_back = np.tensordot(matrix[:-1, :-1], pulled, 1) + matrix[:-1, -1].reshape(
        -1, *[1] * len(shape)
    )
    np.testing.assert_allclose(mapped_back, np.indices(shape), atol=1e-4)
    assert 0.3 < np.abs(u).max() < 12


@shapes
def test_scaling_and_translation_equal_the_closed_form(shape):
    x = np.indices(shape).astype(float)
    centre = (np.array(shape) - 1).reshape(-1, *[1] * len(shape)) / 2
    u = field(Affine(**{**STILL, "scales": ((1.25, 1.25),)}), shape)[0]
    np.testing.assert_allclose(u, (x - centre) * (1 / 1.25 - 1), atol=1e-4)
    u = field(Affine(**{**STILL, "translation": (3, 3)}), shape)[0]
    np.testing.assert_allclose(u, np.full_like(x, -3), atol=1e-4)
    u = field(Affine(**{**STILL, "centre_shift": (2, 2), "scales": ((0.5, 0.5),)}), shape)[0]
    np.testing.assert_allclose(u, x - centre - 2, atol=1e-4)


@shapes
def test_rotation_keeps_lengths_and_turns_by_its_angle(shape):
    matrix = Affine(**{**STILL, "rotation": (5, 5)}).sample_matrix(generator(), shape)[0].numpy()
    turn = matrix[:-1, :-1]
    np.testing.assert_allclose(turn @ turn.T, np.eye(len(shape)), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    angle = np.degrees(np.arccos((np.trace(turn) - len(shape) + 2) / 2))
    assert angle == pytest.approx(5 * np.sqrt(len(shape) * (len(shape) - 1) / 2))


@shapes
def test_affine_components_are_composed_in_random_order(shape):
    def linear(seed=0, **ranges):
        return (
            Affine(**{**STILL, **ranges}).sample_matrix(generator(seed), shape)[0, :-1, :-1].numpy()
        )

    turn, shear = linear(rotation=(30, 30)), linear(shear=(0.3, 0.3))
    matrices = [linear(seed, rotation=(30, 30), shear=(0.3, 0.3)) for seed in range(20)]
    first = [np.allclose(m, turn @ shear) for m in matrices]
    assert 0 < sum(first) < 20
    assert all(f or np.allclose(m, shear @ turn) for m, f in zip(matrices, first, strict=True))
    matrices = [linear(seed, rotation=(30, 30), scales=((0.5, 2),)) for seed in range(20)]
    first = [is_diagonal(turn.T @ m) for m in matrices]
    assert 0 < sum(first) < 20
    assert all(f or is_diagonal(m @ turn.T) for m, f in zip(matrices, first, strict=True))


@shapes
def test_affine_components_stay_within_their_ranges(shape):
    scales = Affine(**{**STILL, "scales": ((1, 1.2), (2, 2.1))})
    drawn = np.concatenate(
        [np.diag(scales.sample_matrix(generator(s), shape)[0])[:-1] for s in range(200)]
    )
    high = drawn > 1.5
    assert 0.35 < high.mean() < 0.65
    assert drawn[~high].max() <= 1.2
    assert drawn[high].min() >= 2
    sheared = Affine(**{**STILL, "shear": (-0.04, 0.04)}).sample_matrix(generator(), shape)[
        0, :-1, :-1
    ]
    off = sheared[~torch.eye(len(shape), dtype=torch.bool)]
    assert torch.equal(sheared.diagonal(), torch.ones(len(shape), dtype=torch.float64))
    assert len(off.unique()) == len(shape) * (len(shape) - 1)  # two in 2D, six in 3D
    assert 0 < off.abs().max() <= 0.04


def smoothed_by_scipy(noise, shape):
    """The published steps, one after another: two kernels, linear zoom, 5 voxels cut away."""
    for component in noise:
        for size, sigma in ((9, 3.0), (5, 2.0)):
            kernel = np.exp(-0.5 * (np.arange(size) - size // 2) ** 2 / sigma**2)
            for axis in range(component.ndim):
                component = correlate1d(component, kernel / kernel.sum(), axis, mode="constant")
        at = np.meshgrid(
            *[np.linspace(0, s - 1, n + 10) for s, n in zip(component.shape, shape, strict=True)],
            indexing="ij",
        )
        zoomed = map_coordinates(component, np.array(at), order=1, mode="nearest")
        yield zoomed[(slice(5, -5),) * len(shape)]


@shapes
def test_non_rigid_field_follows_the_published_steps(shape):
    maker, rng = NonRigid(coarse_grid_size=(11, 14), magnitude=(2, 5)), generator(4)
    counts = rng.integers(11, 15, len(shape))
    magnitude = rng.uniform(2, 5)
    noise = rng.uniform(-magnitude, magnitude, (len(shape), *counts))
    expected = np.stack(list(smoothed_by_scipy(noise, shape)))
    expected *= np.abs(noise).max() / np.abs(expected).max()
    u = field(maker, shape, seed=4)
    assert u.shape == (1, len(shape), *shape)
    assert u.dtype == torch.float32
    np.testing.assert_allclose(u[0], expected, atol=2e-5)


@shapes
def test_non_rigid_fields_have_the_requested_magnitude(shape):
    largest = [float(field(NonRigid(magnitude=(1, 6)), shape, s).abs().max()) for s in range(30)]
    assert 0.95 < min(largest) < 2
    assert 5 < max(largest) <= 6


@shapes
def test_white_noise_is_scaled_to_its_maximum(shape):
    u = field(WhiteNoise(0.02), shape)
    assert u.abs().max() == pytest.approx(0.02, rel=1e-5)
    neighbours = torch.stack([u[:, :, 1:].flatten(), u[:, :, :-1].flatten()])
    assert abs(torch.corrcoef(neighbours)[0, 1]) < 0.1
