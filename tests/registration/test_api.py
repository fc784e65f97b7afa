"""Registration of images in memory, and pipelines built from a configuration."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from omegaconf import OmegaConf
from scipy.ndimage import map_coordinates

import regnet_lab
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.registration.api import load_training_grid
from regnet_lab.registration.image_types import load_volume
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


def make_images(kind):
    """Return a pair of images as objects of one kind, and the spacing to name for arrays."""
    cases = make_cases(3)
    if kind == "sitk":
        return [coordinates.array_to_sitk(case.image, case.affine) for case in cases]
    if kind == "nibabel":
        return [coordinates.array_to_nifti(case.image, case.affine) for case in cases]
    if kind == "bool":
        return [case.image > case.image.mean() for case in cases]
    if kind == "tensor":
        return [torch.from_numpy(case.image)[None, None].half() for case in cases]
    return [case.image for case in cases]


@pytest.mark.parametrize("kind", ["sitk", "nibabel", "array", "bool", "tensor"])
def test_the_warped_image_has_the_type_of_the_moving_image(kind):
    fixed, moving = make_images(kind)
    warped = regnet_lab.register(fixed, moving, *QUICK_OPTIONS).warped
    assert type(warped) is type(moving)
    if kind == "sitk":
        assert warped.IsSameImageGeometryAs(fixed)
    elif kind == "nibabel":
        np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-6)
        assert warped.get_data_dtype() == moving.get_data_dtype()
    else:
        assert warped.dtype == moving.dtype
        assert warped.shape == fixed.shape
    if kind == "bool":
        assert warped.any()
        assert not warped.all()


def test_the_geometry_of_arrays_is_that_of_the_same_images_in_simpleitk():
    fixed, moving = make_cases(3)
    images = (coordinates.array_to_sitk(case.image, case.affine) for case in (fixed, moving))
    expected = sitk.GetArrayFromImage(regnet_lab.register(*images, *QUICK_OPTIONS).warped).T
    registered = regnet_lab.register(
        fixed.image,
        torch.from_numpy(moving.image),
        *QUICK_OPTIONS,
        affine=fixed.affine,
        moving_affine=moving.affine,
    )
    np.testing.assert_allclose(registered.warped.numpy(), expected, atol=1e-3 * np.ptp(expected))


def test_spacing_scales_the_world():
    fixed, moving = (case.image[:16, :16, :16] for case in make_cases(3))
    spacing = (1, 2, 3)
    registered = regnet_lab.register(fixed, moving, *QUICK_OPTIONS, spacing=spacing)
    for grid in (registered.result.deformation.fixed, registered.result.deformation.moving):
        np.testing.assert_allclose(grid.spacing, spacing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": (1, 2)}, "one positive number of mm, or 3"),
        ({"spacing": 0}, "positive"),
        ({"affine": np.zeros((4, 4))}, "invertible"),
        ({"spacing": 1, "affine": np.eye(4)}, "not both"),
    ],
)
def test_faulty_geometry_of_arrays_is_refused(options, message):
    image = np.random.default_rng(0).random((8, 8, 8))
    with pytest.raises(UserError, match=message):
        regnet_lab.register(image, image, *QUICK_OPTIONS, **options)


def test_geometry_besides_that_of_an_image_is_refused():
    image = coordinates.array_to_sitk(np.random.default_rng(0).random((8, 8, 8)), np.eye(4))
    with pytest.raises(UserError, match="other images have theirs"):
        regnet_lab.register(image, image, *QUICK_OPTIONS, spacing=2)
    with pytest.raises(UserError, match="list is no image"):
        regnet_lab.register([1], image, *QUICK_OPTIONS)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 4, 5, 6)), "2D or 3D"),
        (np.full((5, 6), np.nan), "all voxels are NaN"),
        (np.ones((5, 6), complex), "real numbers"),
    ],
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


@pytest.mark.parametrize("kind", ["bool", "uint8", "float", "nibabel", "turned"])
def test_masks_of_every_kind_mean_the_same(kind):
    fixed, moving = (coordinates.array_to_nifti(c.image, c.affine) for c in make_cases(3))
    inside = np.zeros(fixed.shape, bool)
    inside[4:15, 3:14, 5:12] = True
    masks = {
        "bool": inside,
        "uint8": inside * np.uint8(255),
        "float": inside.astype(np.float32),
        "nibabel": coordinates.array_to_nifti(inside.astype(np.uint8), fixed.affine),
    }
    masks["turned"] = masks["nibabel"].as_reoriented([[2, -1], [0, 1], [1, -1]])
    registered = regnet_lab.register(fixed, moving, *QUICK_OPTIONS, fixed_mask=masks[kind])
    expected = regnet_lab.register(fixed, moving, *QUICK_OPTIONS, fixed_mask=inside)
    np.testing.assert_array_equal(registered.displacement, expected.displacement)
    assert (
        registered.result.pair["fixed_mask"].bool().sum()
        == expected.result.pair["fixed_mask"].bool().sum()
    )


@pytest.mark.parametrize("kind", ["array", "tensor", "nibabel"])
def test_values_that_are_not_finite_are_replaced(kind, caplog):
    case = make_cases(3)[0]
    holed = case.image.copy()
    holed[3, 4, 5] = np.nan
    image = {
        "array": holed,
        "tensor": torch.from_numpy(holed),
        "nibabel": coordinates.array_to_nifti(holed[..., None], case.affine),
    }[kind]
    assert load_volume(image).num_replaced == 1
    assert np.isfinite(load_volume(image).array).all()
    assert load_volume(image).array.ndim == 3
    assert "1 of its values are NaN" in caplog.text
