"""Classical registration: directions, accuracy and error messages."""

import operator
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from scipy.ndimage import gaussian_filter

from regnet_lab import ops
from regnet_lab.errors import MissingPackageError, UserError
from regnet_lab.models.classical import base, elastix, subprocess

SHAPES = pytest.mark.parametrize("shape", [(40, 48), (28, 32, 24)])
NEEDS = {"elastix_affine": "itk-elastix", "elastix_bspline": "itk-elastix", "ants_syn": "antspyx"}
LINEAR = ("affine_mi", "elastix_affine")
DEFORMABLE = ("demons", "elastix_bspline", "ants_syn")
FAST = {  # few iterations are enough for these tests
    "elastix_affine": ["model.parameter_maps.affine.MaximumNumberOfIterations=100"],
    "elastix_bspline": [
        "model.parameter_maps.affine.MaximumNumberOfIterations=100",
        "model.parameter_maps.bspline.MaximumNumberOfIterations=60",
    ],
}


def smooth(shape, seed, channels=1, sigma=2.5):
    noise = np.random.default_rng(seed).normal(size=(1, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()


@pytest.fixture
def registered(composed):
    """The displacement of a YAML's model; skips the test if its package is missing."""

    def run(name, fixed, moving):
        try:
            version(NEEDS.get(name, "numpy"))
        except PackageNotFoundError:
            pytest.skip(f"needs {NEEDS[name]}: pip install '.[baselines]'")
        cfg = composed("evaluate", f"model={name}", *FAST.get(name, []))
        (u,) = instantiate(cfg.model, _convert_="all")(fixed, moving)
        return u

    return run


def core(shape, rim=6):
    """The interior, away from voxels that leave the field of view."""
    return (..., *[slice(rim, -rim)] * len(shape))


@pytest.mark.parametrize("name", [*LINEAR, *DEFORMABLE])
@SHAPES
def test_a_shift_is_recovered_along_every_axis(name, shape, registered):
    moving, shift = smooth(shape, 1), torch.tensor([2.0, -1.0, 0.5][: len(shape)])
    u = shift.view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    u_recovered = registered(name, ops.warp(moving, u), moving)[core(shape)]
    torch.testing.assert_close(u_recovered.flatten(2).mean(2)[0], shift, atol=0.25, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
@SHAPES
def test_an_affine_map_is_recovered(name, shape, registered):
    ndim = len(shape)
    matrix = torch.eye(ndim + 1)[None]
    matrix[0, 0, 1], matrix[0, 1, 1] = 0.08, 0.94
    matrix[0, :-1, -1] = torch.tensor([-1.5, 2.0, 0.5][:ndim])
    u, moving = ops.affine_field(matrix, shape), smooth(shape, 2)
    error = (registered(name, ops.warp(moving, u), moving) - u)[core(shape)].norm(dim=1)
    assert error.mean() < 0.2 * u[core(shape)].norm(dim=1).mean()


@pytest.mark.parametrize("name", DEFORMABLE)
@SHAPES
def test_a_smooth_displacement_is_recovered_better_than_by_identity(name, shape, registered):
    ndim, moving = len(shape), smooth(shape, 3, sigma=2.0)
    u = smooth(shape, 4, ndim, sigma=5.0)
    u = 3 * (u - u.mean(dim=[*range(2, ndim + 2)], keepdim=True)) / u.std()
    u = u.clamp(-4, 4) / 2
    recovered = registered(name, ops.warp(moving, u), moving)
    error, still = ((v - u)[core(shape)].norm(dim=1).mean() for v in (recovered, 0 * u))
    assert error < 0.6 * still
    assert ops.jacobian_determinant(recovered).min() > 0


def test_demons_handle_different_brightness(registered):
    moving, u = smooth((40, 48), 5), torch.zeros(1, 2, 40, 48)
    u[:, 1] = 2 * torch.sin(torch.arange(40) / 6)[:, None]
    fixed = ops.warp(moving, u)
    for darker in (moving, 0.3 + 0.4 * moving):
        error = (registered("demons", fixed, darker) - u)[core((40, 48))].norm(dim=1)
        assert error.mean() < 0.5


def test_masks_are_voxels_brighter_than_the_minimum():
    image = np.zeros((4, 5), np.float32)
    image[1:3, 2:] = 0.7
    (mask,) = base.ClassicalMethod().make_masks(image)
    np.testing.assert_array_equal(mask, image > 0)
    assert base.ClassicalMethod().make_masks(image, np.ones((4, 5), np.float32)) is None
    assert base.ClassicalMethod(masked=False).make_masks(image) is None


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [((48, 64, 48), 3, 3), ((9, 11), 3, 1), ((16, 20), 3, 2), ((3, 100), 4, 1), ((64, 64), 2, 2)],
)
def test_levels_have_at_least_eight_voxels_along_every_axis(shape, wanted, expected):
    assert base.limit_levels(shape, wanted) == expected


# --- other libraries, in a child process


def test_a_missing_package_is_named_with_its_install_command():
    with pytest.raises(MissingPackageError, match=r"pip install .* '\.\[baselines\]'"):
        subprocess.run_in_child_process("no-such-package", max, 1, 2)


def test_a_crash_in_the_child_process_is_an_error_and_the_next_call_works():
    assert subprocess.run_in_child_process("numpy", operator.add, 1, 2) == 3
    with pytest.raises(UserError, match="numpy crashed"):
        subprocess.run_in_child_process("numpy", os._exit, 3)
    with pytest.raises(UserError, match=r"numpy could not register a pair: .*negative"):
        subprocess.run_in_child_process("numpy", torch.zeros, -1)
    assert subprocess.run_in_child_process(
        "numpy", os.getenv, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
    ) == str(torch.get_num_threads())


def test_the_failure_reason_is_read_from_elastix_log():
    log = "ELASTIX\nDescription: ITK ERROR: a\n  Description: ITK ERROR: Too many samples\n\nend"
    assert elastix.find_failure_reason(log) == "ITK ERROR: Too many samples"
    assert elastix.find_failure_reason("") == "elastix does not say why"


def test_training_a_classical_method_is_a_user_error(command, tmp_path):
    done = command(
        "train.py", "model=demons", "ndim=2", "data.dataset.shape=16", "data.dataset.num_pairs=2",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 2
    assert "demons has nothing to train: evaluate it with evaluate.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(Path(tmp_path).rglob("*.ckpt"))
