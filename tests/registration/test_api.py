"""Registration of images in memory, and pipelines built from a configuration."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from omegaconf import OmegaConf
from scipy.ndimage import map_coordinates

import regnet_lab
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.registration.api import load_training_grid
from regnet_lab.spatial import coordinates
from tests.helpers.geometry import affine_matrix
from tests.helpers.registration import QUICK_OPTIONS, make_cases


def test_arrays_are_registered():
    fixed, moving = make_cases(2, affine_matrix((0, 0, 0), (1, 1, 1), (2, 0, 0)))
    size = tuple(slice(0, n) for n in np.minimum(fixed.image.shape, moving.image.shape))
    registered = regnet_lab.register(
        fixed.image[size], moving.image[size].astype(np.int16), *QUICK_OPTIONS
    )
    assert registered.warped.dtype == np.int16
    points = np.indices(registered.warped.shape) + registered.displacement
    expected = map_coordinates(moving.image[size].astype(np.int16).astype(float), points, order=1)
    inner = (slice(3, -3),) * 2
    assert np.abs(registered.warped - expected)[inner].max() < 1


def test_simpleitk_images_are_registered():
    fixed, moving = (coordinates.array_to_sitk(c.image, c.affine) for c in make_cases(3))
    registered = regnet_lab.register(fixed, moving, *QUICK_OPTIONS)
    expected = sitk.Resample(moving, fixed, registered.transform, sitk.sitkLinear)
    inner = (slice(5, -5),) * 3
    warped = sitk.GetArrayFromImage(registered.warped)
    assert np.abs(warped - sitk.GetArrayFromImage(expected))[inner].max() < 1e-3 * np.ptp(warped)
    point = (1.0, 2.0, 3.0)
    returned = registered.inverse.TransformPoint(registered.transform.TransformPoint(point))
    np.testing.assert_allclose(returned, point, atol=0.1)


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.zeros((3, 4, 5, 6)), "2D or 3D"), (np.full((5, 6), np.nan), "finite")],
)
def test_faulty_arrays_are_refused(image, message):
    with pytest.raises(UserError, match=message):
        regnet_lab.register(image, image, *QUICK_OPTIONS)


@pytest.mark.parametrize("choice", ["affine", "rigid", "centre", "identity"])
def test_every_alignment_can_be_instantiated(choice, composed):
    assert instantiate_config(composed("register", f"align={choice}").align)


@pytest.mark.parametrize("choice", ["field", "network"])
def test_every_optimizer_can_be_instantiated(choice, composed):
    assert instantiate_config(composed("register", f"optimizer={choice}").optimizer)


@pytest.mark.parametrize("key", ["data.dataset", "data.dataset.images"])
def test_the_training_grid_is_read_from_a_run(key, tmp_path):
    run = OmegaConf.create({"output_dir": str(tmp_path)})
    OmegaConf.update(run, f"{key}.prepare", {"spacing": 4.0, "intensity": "window", "shape": None})
    assert load_training_grid(run) == {"spacing": 4.0, "intensity": "window"}
    (tmp_path / "grid.json").write_text('{"shape": [5, 6]}', encoding="utf-8")
    assert load_training_grid(run)["shape"] == [5, 6]
