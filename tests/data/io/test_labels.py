"""Label maps and masks: exact values, and their place on the grid of their image."""

import logging
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.data.case import Case
from regnet_lab.data.io.cases import read_case
from regnet_lab.data.io.images import Volume, read_volume
from regnet_lab.data.io.labels import read_labels, read_mask
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

SHAPE = (7, 8, 9)
AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 2.5, 10], [0, 0, 0, 1]])
LARGE_LABELS = (16777217, 614454277, 2**31 - 1)  # the first is not exact in float32


def make_labels(shape=SHAPE, dtype=np.uint8, high=5):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def make_image(shape=SHAPE, affine=AFFINE):
    return Volume(np.zeros(shape, np.float32), affine)


def save(path, array, affine=AFFINE):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, affine, dtype=array.dtype), path)
    else:
        sitk.WriteImage(coordinates.array_to_sitk(array, affine), str(path))
    return path


def shifted(*offset):
    """The affine of an array whose first voxel is voxel ``offset`` of the image."""
    affine = AFFINE.copy()
    affine[:, 3] = AFFINE @ [*offset, 1]
    return affine


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32, np.float64])
def test_labels_on_the_grid_of_the_image_are_taken_as_they_are(tmp_path, dtype, caplog):
    caplog.set_level(logging.INFO)
    array = make_labels(dtype=dtype)
    path = save(tmp_path / "labels.nii.gz", array.astype(np.uint8) if dtype is bool else array)
    labels = read_labels(path, make_image(), tmp_path / "image.nii.gz")
    assert labels.dtype == np.int16
    np.testing.assert_array_equal(labels, array)
    assert not caplog.records


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.npy"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.float64])
def test_large_labels_are_exact(tmp_path, name, dtype):
    array = np.array([0, 5, 16777216, *LARGE_LABELS])[make_labels(high=6)].astype(dtype)
    labels = read_labels(save(tmp_path / name, array), make_image(), tmp_path / "image.nii.gz")
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, array.astype(np.int64))


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [
        (np.int16, -1, "labels.nii.gz: label values must be .* 1 of 504 voxels are negative"),
        (np.float32, 0.5, r"must be whole numbers, but 1 of 504 voxels are not, the first is 0\.5"),
        (np.float64, 614454277.5, "label 614454272 in a real data type, which is not exact"),
        (np.float32, 614454277, "label 614454272 in a real data type, which is not exact above"),
        (np.uint32, 2**31, "label 2147483648 is above 2147483647; renumber"),
        (np.uint64, 2**63 + 1, "label 9223372036854775809 is above 2147483647"),
        (np.int64, 2**40, "label 1099511627776 is above 2147483647"),
    ],
)
def test_values_that_are_no_labels_are_refused_with_their_number(tmp_path, dtype, value, reason):
    array = make_labels(dtype=dtype)
    array[1, 2, 3] = value
    path = save(tmp_path / "labels.nii.gz", array)
    with pytest.raises(UserError, match=reason):
        read_labels(path, make_image(), tmp_path / "image.nii.gz")


def test_rounding_errors_of_labels_are_removed_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    array = make_labels(dtype=np.float32)
    array[0, 0, :2] = 2.0002, 2.9998
    path = save(tmp_path / "labels.nii.gz", array)
    for _ in range(2):
        labels = read_labels(path, make_image(), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(labels, np.rint(array))
    (record,) = caplog.records
    assert "2 label values were rounded" in record.getMessage()


MASKS = {
    "0 and 1": ([0, 1], [0, 1], None),
    "0 and 255": ([0, 255], [0, 1], "go up to 255; all voxels that are not 0 are inside"),
    "several labels": ([0, 1, 2, 7], [0, 1, 1, 1], "go up to 7"),
    "reals 0 and 1": ([0.0, 1.0], [0, 1], None),
    "rounding errors": ([0.0, 0.99999], [0, 1], None),
    "probabilities": ([0, 0.25, 0.5, 1], [0, 0, 1, 1], "between 0 and 1; voxels from 0.5 are"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_the_values_of_a_mask_are_said_and_made_binary(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    values, expected, message = MASKS[kind]
    whole = all(isinstance(value, int) for value in values)
    index = make_labels(high=len(values))
    array = np.array(values, np.uint8 if whole else np.float32)[index]
    path = save(tmp_path / "mask.nii.gz", array)
    for _ in range(2):
        mask = read_mask(path, make_image(), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(mask, np.array(expected)[index])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (message is not None)
    assert all(str(path) in text and message in text for text in messages)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-1, "1 of 504 voxels are negative"), (127.5, "1 of 504 mask values are not whole")],
)
def test_values_that_are_no_mask_are_refused(tmp_path, value, reason):
    array = np.full(SHAPE, 255, np.float32)
    array[1, 2, 3] = value
    path = save(tmp_path / "mask.nii.gz", array)
    with pytest.raises(UserError, match=rf"mask\.nii\.gz: .*{reason}"):
        read_mask(path, make_image(), tmp_path / "image.nii.gz")


def test_a_jpeg_of_labels_or_a_mask_is_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(make_labels((20, 30))), str(tmp_path / "a.jpg"))
    image = read_volume(tmp_path / "a.jpg")
    for read in (read_labels, read_mask):
        with pytest.raises(UserError, match=r"a\.jpg: JPEG changes labels"):
            read(tmp_path / "a.jpg", image, tmp_path / "b.jpg")


def test_labels_of_a_4d_image_take_its_phase(tmp_path):
    array = make_labels((*SHAPE, 3))
    path = save(tmp_path / "labels.nii.gz", array)
    labels = read_labels(path, read_volume(path, 2), path, phase=2)
    np.testing.assert_array_equal(labels, array[..., 2])


GRIDS = {  # array of the file, its affine, and the part of the message that says what was done
    "flipped": (lambda a: a[::-1, :, ::-1], AFFINE @ [[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, -1, 8],
                [0, 0, 0, 1]], "axes brought to the order"),
    "exchanged": (lambda a: a.transpose(2, 0, 1), AFFINE[:, [2, 0, 1, 3]], "axes brought to"),
    "cropped": (lambda a: a[1:5, :, 2:], shifted(1, 0, 2), "resampled to the grid"),
    "padded": (lambda a: np.pad(a, ((2, 1), (0, 0), (1, 3))), shifted(-2, 0, -1), "resampled to"),
    "finer": (lambda a: a.repeat(3, 0).repeat(3, 2),
              AFFINE @ [[1 / 3, 0, 0, -1 / 3], [0, 1, 0, 0], [0, 0, 1 / 3, -1 / 3], [0, 0, 0, 1]],
              "resampled to the grid"),
    "headers that differ by rounding": (lambda a: a, shifted(0.001, 0, 0.002), None),
    "headers that differ by less than a voxel": (lambda a: a, shifted(0.4, 0, 0), "array order"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nrrd"])
@pytest.mark.parametrize("kind", GRIDS)
def test_labels_on_another_grid_are_brought_to_that_of_the_image(tmp_path, kind, name, caplog):
    caplog.set_level(logging.INFO)
    change, affine, message = GRIDS[kind]
    array = make_labels()
    array[[0, -1]] = array[:, :, :2] = 0  # what the cropped array lacks
    array[5:] = 0
    path = save(tmp_path / name, np.ascontiguousarray(change(array)), affine)
    for _ in range(2):
        labels = read_labels(path, make_image(), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(labels, array)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (message is not None)
    assert all(str(path) in text and message in text for text in messages)


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 1)])
def test_labels_of_a_slice_are_found_in_those_of_the_volume(tmp_path, shape):
    volume = make_labels((9, 11, 5))
    path = save(tmp_path / "labels.nii.gz", volume)
    image = save(tmp_path / "image.nii.gz", np.ones(shape, np.float32), shifted(0, 0, 3))
    labels = read_labels(path, read_volume(image), image)
    np.testing.assert_array_equal(labels, volume[:, :, 3])


def test_labels_in_another_plane_are_taken_and_mentioned(tmp_path, caplog):
    array = make_labels((9, 11, 1))
    path = save(tmp_path / "labels.nii.gz", array, shifted(0, 0, 4))
    image = save(tmp_path / "image.nii.gz", np.ones((9, 11, 1), np.float32), shifted(0, 0, 1))
    np.testing.assert_array_equal(read_labels(path, read_volume(image), image), array[:, :, 0])
    (record,) = caplog.records
    assert "its plane is up to 3 slices away" in record.getMessage()


ELSEWHERE = {
    "another place": (lambda a: a, shifted(40, 0, 0), "40 voxels away .* trust_array_order=true"),
    "a small shift": (lambda a: a, shifted(0, 2, 0), "2 voxels away"),
    "a header without geometry": (lambda a: a, np.eye(4), "voxels away"),
    "another spacing": (lambda a: a, AFFINE @ np.diag([2, 1, 1, 1]), "3 voxels away"),
    "axes of numpy": (lambda a: a.T, AFFINE, "with axes exchanged"),
    "another place and shape": (lambda a: a[1:], shifted(40, 0, 0), "shares 0 % .* another shape"),
    "hardly any overlap": (lambda a: a[1:], shifted(0, 0, 7), "shares 22 % of the smaller field"),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_labels_whose_place_is_uncertain_are_refused(tmp_path, kind):
    change, affine, reason = ELSEWHERE[kind]
    path = save(tmp_path / "labels.nii.gz", np.ascontiguousarray(change(make_labels())), affine)
    for read in (read_labels, read_mask):
        with pytest.raises(UserError, match=rf"labels\.nii\.gz: .*{reason}") as caught:
            read(path, make_image(), tmp_path / "image.nii.gz")
        assert "\n" not in str(caught.value)
        assert "image.nii.gz" in str(caught.value)


@pytest.mark.parametrize("kind", ["another place", "a small shift", "another spacing"])
def test_array_order_is_taken_if_it_is_trusted_and_said(tmp_path, kind, caplog):
    array = make_labels()
    image = save(tmp_path / "image.nii.gz", np.random.default_rng(1).normal(size=SHAPE))
    path = save(tmp_path / "labels.nii.gz", array, ELSEWHERE[kind][1])
    case = Case("a", image, path, path)
    loaded = read_case(case, trust_array_order=True)
    np.testing.assert_array_equal(loaded.labels, array)
    np.testing.assert_array_equal(loaded.mask, array > 0)
    (record,) = caplog.records
    assert "taken in array order" in record.getMessage()
    pair = CropOrPad(SHAPE, trust_array_order=True)(case, case)
    np.testing.assert_array_equal(pair["fixed_labels"][0], array)
    with pytest.raises(UserError, match="trust_array_order"):
        CropOrPad(SHAPE)(case, case)


@pytest.mark.parametrize(
    "names", [("i.nii.gz", "l.npy"), ("i.png", "l.nii.gz"), ("i.png", "l.png")]
)
def test_files_without_world_coordinates_are_taken_in_array_order(tmp_path, names, caplog):
    caplog.set_level(logging.INFO)
    image, labels = (tmp_path / name for name in names)
    array = make_labels((9, 11))
    save(image, array)
    save(labels, array)
    image_volume = read_volume(image)
    np.testing.assert_array_equal(read_labels(labels, image_volume, image), array)
    save(labels, array[1:])
    with pytest.raises(UserError, match=re.escape("its shape (8, 11) differs from (9, 11)")):
        read_labels(labels, image_volume, image)
    assert not [r for r in caplog.records if "array order" in r.getMessage()]


@pytest.mark.parametrize("prepare", [CropOrPad((8, 8, 8)), ResampleToFixed(spacing=2.0)])
def test_training_pairs_do_not_depend_on_how_labels_are_stored(tmp_path, prepare):
    rng = np.random.default_rng(1)
    array = make_labels()
    image = save(tmp_path / "image.nii.gz", rng.normal(size=SHAPE).astype(np.float32))
    turned = array[::-1].transpose(1, 0, 2)
    affine = (AFFINE @ [[-1, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[:, [1, 0, 2, 3]]
    plain = save(tmp_path / "plain.nii.gz", array)
    other = save(tmp_path / "other.nii.gz", np.ascontiguousarray(turned), affine)
    first, second = (prepare(c, c) for c in (Case("a", image, p, p) for p in (plain, other)))
    for key in ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask"):
        assert first[key].any()
        np.testing.assert_array_equal(first[key], second[key])
