import os
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nibabel import orientations

from regnet_lab import ops
from regnet_lab.data.case import Case, LandmarkFile, make_ordered_pairs
from regnet_lab.data.datasets.base import CasePairs
from regnet_lab.data.preprocessing.functional import (
    crop_or_pad,
    normalize_min_max,
    normalize_percentiles,
    normalize_window,
    select_labels,
)
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed, Resize
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

REAL = Path(os.environ.get("REGNET_LAB_DATA", "absent"))
SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
as_it_is = partial(normalize_window, low=0, high=1)


def turned(degrees, spacing, origin):
    """An affine turned about z and, if asked for, about x."""
    about_z, about_x = np.radians(degrees)
    cos, sin = np.cos, np.sin
    z = np.array([[cos(about_z), -sin(about_z), 0], [sin(about_z), cos(about_z), 0], [0, 0, 1]])
    x = np.array([[1, 0, 0], [0, cos(about_x), -sin(about_x)], [0, sin(about_x), cos(about_x)]])
    affine = np.eye(4)
    affine[:3, :3] = z @ x * spacing
    affine[:3, 3] = origin
    return affine


def texture(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def save(folder, name, array, affine=None):
    path = folder / f"{name}.nii"
    affine = np.eye(4) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def marked_case(folder, name, shape, affine, middles, width=3, space="voxel"):
    """A case with a cube of its own label round each landmark."""
    labels = np.zeros(shape, np.int16)
    for value, middle in enumerate(np.rint(middles).astype(int), start=1):
        labels[tuple(slice(max(m - width // 2, 0), m + width // 2 + 1) for m in middle)] = value
    written = (
        coordinates.voxel_to_world(affine, middles)[:, : len(shape)] if space == "ras" else middles
    )
    np.savetxt(folder / f"{name}.csv", written, delimiter=",")
    return Case(
        name,
        save(folder, f"{name}_image", texture(shape), affine),
        labels=save(folder, f"{name}_labels", labels, affine),
        points=LandmarkFile(folder / f"{name}.csv", tuple(range(len(shape))), space),
    )


@SHAPES
def test_crop_or_pad_without_spacing_is_exact(tmp_path, shape):
    image, labels = texture(shape) * 900, (texture(shape, 1) * 5).astype(np.int16)
    case = Case("a", save(tmp_path, "a", image), save(tmp_path, "labels", labels))
    grid = [shape[0] + 3, shape[1] - 4, *shape[2:]]
    pair = CropOrPad(grid)(case, case)
    added = [(1, 2), (0, 0), (0, 0)][: len(shape)]
    cut = (slice(None), slice(2, -2), slice(None))[: len(shape)]
    expected = np.pad(normalize_percentiles(image), added, "edge")[cut]
    np.testing.assert_array_equal(pair["fixed"][0].numpy(), expected)
    dark = CropOrPad(grid, padding_mode="minimum")(case, case)
    assert (dark["fixed"][0, 0] == 0).all()
    torch.testing.assert_close(pair["fixed_labels"][0].numpy(), crop_or_pad(labels, grid))
    assert pair.keys() == {*("name", "spacing", "fixed", "moving", "fixed_labels", "moving_labels")}


@SHAPES
def test_the_moving_image_is_resampled_as_simpleitk_does(tmp_path, shape):
    ndim = len(shape)
    tilt = 25 if ndim == 3 else 0
    fixed_affine = turned((15, tilt), (0.7, 1.1, 0.9), (-4, -5, 3 * (ndim - 2)))
    moving_affine = turned((-40, -tilt), (1.5, 1.2, 2.0), (-6, -2, -1 * (ndim - 2)))
    moving_shape = tuple(n + 2 for n in shape)
    image = texture(moving_shape)
    labels = (texture(moving_shape, 1) * 9).astype(np.int16)
    fixed = Case("f", save(tmp_path, "f", texture(shape, 2), fixed_affine))
    moving = Case(
        "m",
        save(tmp_path, "m", image, moving_affine),
        labels=save(tmp_path, "l", labels, moving_affine),
        mask=save(tmp_path, "k", (labels > 4).astype(np.uint8), moving_affine),
    )
    pair = ResampleToFixed(intensity=as_it_is)(fixed, moving)
    reference = coordinates.array_to_sitk(texture(shape), fixed_affine)
    linear = sitk.Resample(
        coordinates.array_to_sitk(image, moving_affine),
        reference,
        sitk.Transform(),
        sitk.sitkLinear,
        float(image.min()),
    )
    nearest = sitk.Resample(
        coordinates.array_to_sitk(labels, moving_affine), reference, sitk.Transform(),
        sitk.sitkNearestNeighbor, 0,
    )  # fmt: skip
    expected = sitk.GetArrayFromImage(linear).T
    assert 0.2 < (expected != image.min()).mean() < 0.999
    np.testing.assert_allclose(pair["moving"][0], expected, atol=2e-5)
    expected = sitk.GetArrayFromImage(nearest).T
    np.testing.assert_array_equal(pair["moving_labels"][0], expected)
    np.testing.assert_array_equal(pair["moving_mask"][0], expected > 4)
    np.testing.assert_allclose(pair["spacing"], [0.7, 1.1, 0.9][:ndim], rtol=1e-6)


@pytest.mark.parametrize("codes", ["LPS", "RPI", "SRA", "ALI"])
def test_the_order_in_which_axes_were_stored_makes_no_difference(tmp_path, codes):
    fixed = Case("f", save(tmp_path, "f", texture((7, 8, 9)), turned((9, 4), (1, 1, 1.3), 0)))
    image = nibabel.Nifti1Image(texture((8, 9, 10), 1), turned((0, 0), (1.1, 1.2, 1.3), -1))
    nibabel.save(image, tmp_path / "ras.nii")
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes)
    )
    nibabel.save(image.as_reoriented(turn), tmp_path / "other.nii")
    assert nibabel.load(tmp_path / "other.nii").shape != image.shape or codes in ("LPS", "RPI")
    prepare = ResampleToFixed(intensity=as_it_is)
    straight, reoriented = (
        prepare(fixed, Case(name, tmp_path / f"{name}.nii"))["moving"] for name in ("ras", "other")
    )
    assert straight.std() > 0.05
    torch.testing.assert_close(reoriented, straight, atol=2e-5, rtol=0)


def preparations(ndim):
    shape = (22, 25, 24)[:ndim]
    return {
        "centred": CropOrPad(shape),
        "centred, finer": CropOrPad((30, 28, 26)[:ndim], spacing=0.8),
        "centred, coarser": CropOrPad(shape, spacing=(1.3, 1.0, 1.6)[:ndim]),
        "stretched": Resize((17, 31, 20)[:ndim]),
        "world": ResampleToFixed(),
        "world, finer": ResampleToFixed(spacing=0.75),
        "world, cut": ResampleToFixed(shape=shape, spacing=(0.9, 1.1, 1.2)[:ndim]),
    }


@pytest.mark.parametrize("space", ["voxel", "ras"])
@pytest.mark.parametrize("shape", [(24, 26), (20, 22, 21)])
def test_a_point_and_its_label_stay_together(tmp_path, shape, space):
    ndim = len(shape)
    corners = np.stack(np.meshgrid(*[[7, 13]] * ndim), -1).reshape(-1, ndim)
    fixed, moving = (
        marked_case(
            tmp_path,
            name,
            shape,
            turned((angle, angle * (ndim - 2)), (1, 1.1, 0.9), (1, -1, 0)),
            corners.astype(float),
            space=space,
        )
        for name, angle in (("f", 4), ("m", -5))
    )
    for preprocessing, prepare in preparations(ndim).items():
        pair = prepare(fixed, moving)
        for side in ("fixed", "moving"):
            labels, points = pair[f"{side}_labels"][0], pair[f"{side}_points"]
            assert points.shape == corners.shape
            for value, point in enumerate(points, start=1):
                label_voxels = (labels == value).nonzero().float()
                assert len(label_voxels), (preprocessing, side, value)
                distance = (label_voxels.mean(0) - point).abs().max()
                assert distance <= 0.51, (preprocessing, side, value, distance)
                nearest = tuple(torch.floor(point + 0.5).long().tolist())
                assert labels[nearest] == value, (preprocessing, side, value)


@SHAPES
def test_points_lie_where_both_images_show_the_same_place(tmp_path, shape):
    """A linear image's value at a point is its value at the landmark, whatever the grid."""
    ndim = len(shape)
    affine = turned((20, 30 * (ndim - 2)), (1, 1.2, 0.8), (0, 0, 0))
    slope = np.array([0.03, 0.04, 0.02])[:ndim]
    ramp = (np.moveaxis(np.indices(shape), 0, -1) @ slope).astype(np.float32)
    landmark = np.array([[3.3, 4.6, 4.1][:ndim]])
    np.savetxt(tmp_path / "p.csv", landmark, delimiter=",")
    points = LandmarkFile(tmp_path / "p.csv", tuple(range(ndim)))
    case = Case("a", save(tmp_path, "a", ramp, affine), points=points)
    for prepare in (
        CropOrPad([12] * ndim, spacing=0.7, intensity=as_it_is),
        ResampleToFixed(spacing=0.6, intensity=as_it_is),
    ):
        pair = prepare(case, case)
        value = ops.sample_at(pair["fixed"][None], pair["fixed_points"][None]).item()
        assert value == pytest.approx((landmark @ slope).item(), abs=1e-4)


@pytest.mark.parametrize("shape", [(8, 10), (8, 6, 10)])
def test_twice_the_spacing_averages_voxels(tmp_path, shape):
    image = texture(shape)
    case = Case("a", save(tmp_path, "a", image, turned((30, 0), (1, 1, 1), 0)))
    mean = image
    for axis in range(len(shape)):
        mean = (
            mean.take(range(0, shape[axis], 2), axis) + mean.take(range(1, shape[axis], 2), axis)
        ) / 2
    halved = [n // 2 for n in shape]
    for prepare in (
        ResampleToFixed(spacing=2, intensity=as_it_is),
        CropOrPad(halved, spacing=2.0, intensity=as_it_is),
        Resize(halved, intensity=as_it_is),
    ):
        pair = prepare(case, case)
        np.testing.assert_allclose(pair["fixed"][0], mean, atol=1e-5)
        np.testing.assert_allclose(pair["moving"][0], mean, atol=1e-5)
        np.testing.assert_allclose(pair["spacing"], [2] * len(shape), rtol=1e-6)


def test_a_fine_moving_image_does_not_alias_on_a_coarse_fixed_grid(tmp_path):
    stripes = np.zeros((40, 40), np.float32)
    stripes[::2] = 1
    fixed = Case("f", save(tmp_path, "f", texture((9, 9)), turned((10, 0), (4, 4, 4), 0)))
    moving = Case("m", save(tmp_path, "m", stripes))
    pair = ResampleToFixed(intensity=as_it_is)(fixed, moving)
    inside = pair["moving"][0, 2:7, 2:7]
    assert (inside - 0.5).abs().max() < 0.13


def test_averages_are_taken_along_the_axis_that_is_coarser_in_the_world(tmp_path):
    image, affine = texture((8, 12)), np.eye(4)
    affine[:2, :2] = [[0, 1], [4, 0]]  # axis 0 goes along y in steps of 4, axis 1 along x
    affine[1, 3] = 1.5
    fixed = Case("f", save(tmp_path, "f", texture((3, 8), 1), affine))
    pair = ResampleToFixed(intensity=as_it_is)(fixed, Case("m", save(tmp_path, "m", image)))
    expected = image.reshape(8, 3, 4).mean(2).T
    np.testing.assert_allclose(pair["moving"][0], expected, atol=1e-5)


def test_outside_the_moving_image_lies_its_minimum_and_no_label(tmp_path):
    far = turned((0, 0), (1, 1, 1), (4, 0, 0))
    fixed = Case("f", save(tmp_path, "f", texture((8, 8, 8))))
    image = texture((8, 8, 8), 1) + 3
    ones = save(tmp_path, "ones", np.ones((8, 8, 8), np.uint8), far)
    moving = Case("m", save(tmp_path, "m", image, far), ones, mask=ones)
    pair = ResampleToFixed(intensity=np.asarray)(fixed, moving)
    assert (pair["moving"][0, :4] == float(image.min())).all()
    np.testing.assert_allclose(pair["moving"][0, 4:], image[:4], atol=1e-5)
    for key in ("moving_labels", "moving_mask"):
        assert not pair[key][0, :4].any()
        assert pair[key][0, 4:].all()


@pytest.mark.parametrize(("where", "index"), [(3, 3), (0.5, 4), (0.0, 0), (0.99, 7)])
def test_a_slice_is_a_2d_image_with_the_spacing_of_its_plane(tmp_path, where, index):
    image, labels = texture((6, 7, 8)), (texture((6, 7, 8), 1) * 4).astype(np.int16)
    affine = turned((0, 0), (1.5, 2.5, 8), 0)
    case = Case(
        "a", save(tmp_path, "a", image, affine), save(tmp_path, "l", labels, affine), slice=where
    )
    for prepare in (CropOrPad((6, 7), intensity=as_it_is), ResampleToFixed(intensity=as_it_is)):
        pair = prepare(case, case)
        np.testing.assert_array_equal(pair["fixed"][0], image[:, :, index])
        np.testing.assert_array_equal(pair["moving_labels"][0], labels[:, :, index])
        np.testing.assert_allclose(pair["spacing"], [1.5, 2.5])


def test_slices_of_a_shifted_volume_meet_in_the_plane(tmp_path):
    image = texture((6, 7, 8))
    fixed = Case("f", save(tmp_path, "f", image), slice=2)
    moving = Case("m", save(tmp_path, "m", image, turned((0, 0), (1, 1, 1), (1, 2, 5))), slice=2)
    pair = ResampleToFixed(intensity=as_it_is)(fixed, moving)
    np.testing.assert_allclose(pair["moving"][0, 1:, 2:], image[:5, :5, 2], atol=1e-6)


def test_the_slices_of_a_leaning_stack_begin_where_they_begin(tmp_path):
    image, leaning = texture((6, 7, 8)), np.eye(4)
    leaning[0, 2] = 1
    fixed = Case("f", save(tmp_path, "f", image), slice=0)
    moving = Case("m", save(tmp_path, "m", image, leaning), slice=2)
    pair = ResampleToFixed(intensity=as_it_is)(fixed, moving)
    np.testing.assert_allclose(pair["moving"][0, 2:], image[:4, :, 2], atol=1e-6)


def test_a_missing_slice_is_refused(tmp_path):
    case = Case("a", save(tmp_path, "a", texture((6, 7, 8))), slice=8)
    with pytest.raises(UserError, match=r"a\.nii: has 8 slices, so there is no slice 8"):
        ResampleToFixed()(case, case)


def test_two_phases_of_one_cine_make_a_pair(tmp_path):
    cine = texture((6, 7, 4, 5))
    path = save(tmp_path, "cine", cine)
    fixed, moving = Case("ed", path, phase=0, slice=1), Case("es", path, phase=3, slice=1)
    pair = CropOrPad((6, 7), intensity=as_it_is)(fixed, moving)
    np.testing.assert_array_equal(pair["fixed"][0], cine[:, :, 1, 0])
    np.testing.assert_array_equal(pair["moving"][0], cine[:, :, 1, 3])
    assert pair["name"] == "ed_es"


@SHAPES
def test_labels_are_selected_or_grouped(tmp_path, shape):
    labels = (texture(shape) * 6).astype(np.int16)
    case = Case("a", save(tmp_path, "a", texture(shape)), save(tmp_path, "l", labels))
    selected = CropOrPad(shape, labels=[2, 5])(case, case)["fixed_labels"][0].numpy()
    np.testing.assert_array_equal(selected, np.where(np.isin(labels, [2, 5]), labels, 0))
    grouped = ResampleToFixed(labels={1: [2, 3], 7: 4})(case, case)["moving_labels"][0].numpy()
    expected = np.select([(labels == 2) | (labels == 3), labels == 4], [1, 7], 0)
    np.testing.assert_array_equal(grouped, expected)
    assert selected.dtype == grouped.dtype == np.int16


@pytest.mark.parametrize("kind", [CropOrPad, Resize, ResampleToFixed])
def test_large_labels_keep_their_values(tmp_path, kind):
    ids = np.array([0, 16777217, 614454277, 2**31 - 1], np.int32)
    labels = ids[np.random.default_rng(0).integers(0, 4, (6, 7, 8))]
    case = Case("a", save(tmp_path, "a", texture((6, 7, 8))), save(tmp_path, "l", labels))
    kept = kind(shape=(6, 7, 8))(case, case)["fixed_labels"][0].numpy()
    np.testing.assert_array_equal(kept, labels)
    selected = kind(shape=(6, 7, 8), labels=[614454277])(case, case)["moving_labels"][0].numpy()
    np.testing.assert_array_equal(selected, np.where(labels == 614454277, labels, 0))
    assert set(np.unique(kind(shape=(12, 14, 5))(case, case)["fixed_labels"])) <= set(ids)


def test_groups_may_have_larger_numbers_than_their_labels():
    labels = np.array([0, 1, 2, 3], np.int16)
    selected = select_labels(labels, {614454277: [1, 2], 40000: 3})
    np.testing.assert_array_equal(selected, [0, 614454277, 614454277, 40000])


@pytest.mark.parametrize("kind", [CropOrPad, Resize, ResampleToFixed])
def test_a_shared_range_is_the_fixed_images(tmp_path, kind):
    bright = texture((6, 7)) * 4
    fixed = Case("f", save(tmp_path, "f", texture((6, 7), 1)))
    moving = Case("m", save(tmp_path, "m", bright))
    low, high = texture((6, 7), 1).min(), texture((6, 7), 1).max()
    shared = kind(shape=(6, 7), intensity=normalize_min_max, shared_range=True)(fixed, moving)[
        "moving"
    ]
    np.testing.assert_allclose(shared[0], np.clip((bright - low) / (high - low), 0, 1), atol=1e-6)
    own = kind(shape=(6, 7), intensity=normalize_min_max)(fixed, moving)["moving"]
    expected = (bright - bright.min()) / (bright.max() - bright.min())
    np.testing.assert_allclose(own[0], expected, atol=1e-6)


def test_landmarks_that_have_no_partner_are_noticed(tmp_path):
    middles = np.array([[3.0, 4], [5, 2]])
    fixed = marked_case(tmp_path, "f", (8, 9), np.eye(4), middles)
    moving = marked_case(tmp_path, "m", (8, 9), np.eye(4), middles[:1])
    with pytest.raises(UserError, match=r"f\.csv has 2 landmarks, but .*m\.csv has 1"):
        ResampleToFixed()(fixed, moving)


def test_landmarks_of_another_dimension_are_refused(tmp_path):
    case = marked_case(tmp_path, "f", (8, 9, 7), np.eye(4), np.array([[3.0, 4, 2]]))
    with pytest.raises(UserError, match=r"f\.csv: gives 3 coordinates.*has 2 axes"):
        ResampleToFixed()(*[Case("s", case.image, points=case.points, slice=2)] * 2)


def test_an_image_of_another_dimension_is_refused(tmp_path):
    case = Case("a", save(tmp_path, "a", texture((6, 7, 8))))
    with pytest.raises(UserError, match=r"a\.nii: has 3 axes, but the grid has 2"):
        CropOrPad((6, 7))(case, case)


@pytest.mark.parametrize("spacing", [0, -1, [1, 2], "wide"])
def test_a_spacing_must_be_positive_and_fit_the_axes(tmp_path, spacing):
    case = Case("a", save(tmp_path, "a", texture((6, 7, 8))))
    with pytest.raises(UserError, match="spacing="):
        ResampleToFixed(spacing=spacing)(case, case)


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_changing_a_pair_in_place_does_not_change_the_cache(tmp_path, where):
    case = Case("a", save(tmp_path, "a", texture((6, 7))))
    prepare = ResampleToFixed(cache=where if where == "memory" else str(tmp_path / "cache"))
    first = prepare(case, case)
    before = first["fixed"].clone()
    first["fixed"].zero_()
    torch.testing.assert_close(prepare(case, case)["fixed"], before)


def test_pairs_are_collated_into_batches(tmp_path):
    cases = [marked_case(tmp_path, n, (8, 9), np.eye(4), np.array([[3.0, 4]])) for n in "abc"]
    pairs = CasePairs(make_ordered_pairs(cases), CropOrPad((8, 8)))
    assert len(pairs) == 6
    batch = next(iter(torch.utils.data.DataLoader(pairs, batch_size=6)))
    assert batch["fixed"].shape == (6, 1, 8, 8)
    assert batch["fixed_points"].shape == (6, 1, 2)
    assert batch["spacing"].dtype == torch.float32
    assert batch["name"] == ["a_b", "a_c", "b_a", "b_c", "c_a", "c_b"]


@pytest.mark.skipif(not REAL.is_dir(), reason="REGNET_LAB_DATA is not set")
def test_lung_landmarks_lie_36_mm_apart_in_the_world():
    folder = REAL / "lungct_elastix"
    fixed, moving = (
        Case(
            name,
            folder / f"3DCT_lung_{name}.mha",
            points=LandmarkFile(folder / "landmarks_mm.csv", columns, "lps"),
        )
        for name, columns in (("baseline", (0, 1, 2)), ("followup", (3, 4, 5)))
    )
    pair = ResampleToFixed(spacing=6, intensity=partial(normalize_window, low=-1000, high=0))(
        fixed, moving
    )
    apart = ((pair["fixed_points"] - pair["moving_points"]) * pair["spacing"]).norm(dim=1)
    assert apart.shape == (26,)
    assert apart.mean().item() == pytest.approx(35.7, abs=0.1)
