"""Classical registration: right directions, better than nothing, and said in a sentence if not."""

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
FAST = {  # few iterations: what is tested here needs no more
    "elastix_affine": ["model.stages.affine.MaximumNumberOfIterations=100"],
    "elastix_bspline": [
        "model.stages.affine.MaximumNumberOfIterations=100",
        "model.stages.bspline.MaximumNumberOfIterations=60",
    ],
}


def smooth(shape, seed, channels=1, sigma=2.5):
    noise = np.random.default_rng(seed).normal(size=(1, channels, *shape))
    noise = gaussian_filter(noise, [0, 0, *[sigma] * len(shape)])
    return torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()


@pytest.fixture
def registered(composed):
    """The displacement a YAML's model finds, or a skipped test if its package is missing."""

    def run(name, fixed, moving):
        try:
            version(NEEDS.get(name, "numpy"))
        except PackageNotFoundError:
            pytest.skip(f"needs {NEEDS[name]}: pip install 'regnet-lab[baselines]'")
        cfg = composed("evaluate", f"model={name}", *FAST.get(name, []))
        (u,) = instantiate(cfg.model, _convert_="all")(fixed, moving)
        return u

    return run


def core(shape, rim=6):
    """What lies inside, away from where the image moves out of view."""
    return (..., *[slice(rim, -rim)] * len(shape))


@pytest.mark.parametrize("name", [*LINEAR, *DEFORMABLE])
@SHAPES
def test_a_shift_is_found_along_every_axis_in_the_right_direction(name, shape, registered):
    moving, shift = smooth(shape, 1), torch.tensor([2.0, -1.0, 0.5][: len(shape)])
    u = shift.view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    found = registered(name, ops.warp(moving, u), moving)[core(shape)]
    torch.testing.assert_close(found.flatten(2).mean(2)[0], shift, atol=0.25, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
@SHAPES
def test_an_affine_map_is_found(name, shape, registered):
    ndim = len(shape)
    matrix = torch.eye(ndim + 1)[None]
    matrix[0, 0, 1], matrix[0, 1, 1] = 0.08, 0.94
    matrix[0, :-1, -1] = torch.tensor([-1.5, 2.0, 0.5][:ndim])
    u, moving = ops.affine_field(matrix, shape), smooth(shape, 2)
    error = (registered(name, ops.warp(moving, u), moving) - u)[core(shape)].norm(dim=1)
    assert error.mean() < 0.2 * u[core(shape)].norm(dim=1).mean()


@pytest.mark.parametrize("name", DEFORMABLE)
@SHAPES
def test_a_smooth_displacement_is_found_better_than_by_nothing(name, shape, registered):
    ndim, moving = len(shape), smooth(shape, 3, sigma=2.0)
    u = smooth(shape, 4, ndim, sigma=5.0)
    u = 3 * (u - u.mean(dim=[*range(2, ndim + 2)], keepdim=True)) / u.std()
    u = u.clamp(-4, 4) / 2
    found = registered(name, ops.warp(moving, u), moving)
    error, still = ((v - u)[core(shape)].norm(dim=1).mean() for v in (found, 0 * u))
    assert error < 0.6 * still
    assert ops.jacobian_determinant(found).min() > 0


def test_demons_compare_images_of_other_brightness(registered):
    moving, u = smooth((40, 48), 5), torch.zeros(1, 2, 40, 48)
    u[:, 1] = 2 * torch.sin(torch.arange(40) / 6)[:, None]
    fixed = ops.warp(moving, u)
    for darker in (moving, 0.3 + 0.4 * moving):
        error = (registered("demons", fixed, darker) - u)[core((40, 48))].norm(dim=1)
        assert error.mean() < 0.5


def test_a_mask_is_what_is_brighter_than_the_darkest_voxel():
    image = np.zeros((4, 5), np.float32)
    image[1:3, 2:] = 0.7
    (mask,) = base.Classical().masks(image)
    np.testing.assert_array_equal(mask, image > 0)
    assert base.Classical().masks(image, np.ones((4, 5), np.float32)) is None
    assert base.Classical(masked=False).masks(image) is None


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [((48, 64, 48), 3, 3), ((9, 11), 3, 1), ((16, 20), 3, 2), ((3, 100), 4, 1), ((64, 64), 2, 2)],
)
def test_a_level_has_eight_voxels_along_every_axis(shape, wanted, expected):
    assert base.levels(shape, wanted) == expected


# --- other libraries, in a process of their own


def test_a_missing_package_is_named_with_the_way_to_get_it():
    with pytest.raises(MissingPackageError, match=r"pip install 'regnet-lab\[baselines\]'"):
        subprocess.apart("no-such-package", max, 1, 2)


def test_a_crash_or_a_failure_there_is_a_sentence_here_and_the_next_pair_goes_on():
    assert subprocess.apart("numpy", operator.add, 1, 2) == 3
    with pytest.raises(UserError, match="numpy crashed"):
        subprocess.apart("numpy", os._exit, 3)
    with pytest.raises(UserError, match=r"numpy could not register a pair: .*negative"):
        subprocess.apart("numpy", torch.zeros, -1)
    assert subprocess.apart("numpy", os.getenv, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS") == str(
        torch.get_num_threads()
    )


def test_why_elastix_failed_is_read_from_its_log():
    log = "ELASTIX\nDescription: ITK ERROR: a\n  Description: ITK ERROR: Too many samples\n\nend"
    assert elastix.reason(log) == "ITK ERROR: Too many samples"
    assert elastix.reason("") == "elastix does not say why"


def test_what_cannot_be_trained_says_so(command, tmp_path):
    done = command(
        "train.py", "model=demons", "ndim=2", "data.dataset.shape=16", "data.dataset.size=2",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    assert done.returncode == 2
    assert "demons has nothing to train: judge it with evaluate.py" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(Path(tmp_path).rglob("*.ckpt"))
