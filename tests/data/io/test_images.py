import gzip
import struct
from contextlib import suppress

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.data.io import images
from regnet_lab.data.io.labels import read_labels
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from tests.helpers.dicom import write_dicom
from tests.helpers.nifti import write_nifti

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 2.5, 10], [0, 0, 0, 1]])


def array_of(shape, dtype=np.float32):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@SHAPES
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd", "a.nhdr"])
def test_every_format_gives_the_same_voxels_at_the_same_place(tmp_path, shape, name):
    array, path = array_of(shape, np.int16), tmp_path / name
    if "nii" in name:
        save(path, array)
    else:
        sitk.WriteImage(coordinates.array_to_sitk(array, AFFINE), str(path))
    volume = images.read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)
    columns = [*range(len(shape)), 3]
    np.testing.assert_allclose(volume.affine[:2, columns], AFFINE[:2, columns], atol=1e-5)
    np.testing.assert_allclose(volume.spacing, [1.5, 2, 2.5][: len(shape)], rtol=1e-6)


def test_a_numpy_file_lies_in_unit_voxels(tmp_path):
    np.save(tmp_path / "a.npy", array_of((4, 5, 6), np.float64))
    volume = images.read_volume(tmp_path / "a.npy")
    np.testing.assert_array_equal(volume.array, array_of((4, 5, 6)))
    np.testing.assert_array_equal(volume.affine, np.eye(4))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.npy"])
@pytest.mark.parametrize("dtype", [">i2", ">i4", ">f4"])
def test_arrays_have_the_byte_order_of_this_computer(tmp_path, name, dtype):
    array, path = array_of((4, 5, 6), dtype), tmp_path / name
    if name.endswith("npy"):
        np.save(path, array)
    elif name.endswith("mgz"):
        nibabel.save(nibabel.MGHImage(array, AFFINE), path)
    else:
        write_nifti(path, array, AFFINE, AFFINE, dtype=dtype)
    read = images.decode_image(path).array
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, array)
    sitk.WriteImage(sitk.GetImageFromArray(read.T), str(tmp_path / "b.mha"))
    np.testing.assert_array_equal(images.decode_image(tmp_path / "b.mha").array, array)


def test_scaled_integers_become_their_values(tmp_path):
    image = nibabel.Nifti1Image(array_of((4, 5, 6), np.int16), AFFINE)
    image.header.set_slope_inter(2, -1000)
    nibabel.save(image, tmp_path / "a.nii")
    stored = nibabel.load(tmp_path / "a.nii").get_fdata()
    np.testing.assert_allclose(images.read_volume(tmp_path / "a.nii").array, stored)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_coloured_picture_becomes_its_luminance_with_x_first(tmp_path, name):
    colours = np.zeros((30, 50, 3), np.uint8)  # (y, x, channel)
    colours[:, 25:] = 200, 100, 50
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / name))
    array = images.read_volume(tmp_path / name).array
    assert array.shape == (50, 30)
    assert array[10, 15] == pytest.approx(0, abs=2)
    assert array[40, 15] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=2)


def test_a_grey_picture_keeps_its_values(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(array_of((6, 9), np.uint8)), str(tmp_path / "a.png"))
    np.testing.assert_array_equal(images.read_volume(tmp_path / "a.png").array.T, array_of((6, 9)))


def test_a_dicom_folder_is_one_volume_in_order_of_position(tmp_path):
    voxels = write_dicom(tmp_path / "ct")
    volume = images.read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array, voxels)
    expected = np.diag([-0.8, -0.9, 3.0, 1])
    expected[:3, 3] = 10, 20, 30
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)


def test_a_missing_dicom_slice_is_noticed(tmp_path):
    write_dicom(tmp_path / "ct", count=8, skip=[4])
    with pytest.raises(UserError, match=r"ct: slices .* is missing.*6 mm.*3 mm"):
        images.read_volume(tmp_path / "ct")


def test_two_dicom_series_in_a_folder_are_named(tmp_path):
    write_dicom(tmp_path / "ct")
    write_dicom(tmp_path / "ct", series="1.2.4")
    with pytest.raises(UserError, match=r"2 DICOM series.*1\.2\.3.*1\.2\.4"):
        images.read_volume(tmp_path / "ct")


def test_a_folder_without_dicom_is_refused(tmp_path, capfd):
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "notes.txt").write_text("nothing here")
    with pytest.raises(UserError, match="ct: holds no DICOM series"):
        images.read_volume(tmp_path / "ct")
    assert capfd.readouterr().err == ""


def test_a_frame_is_taken_from_a_4d_image(tmp_path):
    array = array_of((5, 6, 3, 4), np.int16)
    path = save(tmp_path / "cine.nii.gz", array)
    np.testing.assert_array_equal(images.read_volume(path, phase=2).array, array[..., 2])


@pytest.mark.parametrize("phase", [None, 4, -1])
def test_a_4d_image_needs_one_of_its_phases(tmp_path, phase):
    path = save(tmp_path / "cine.nii.gz", array_of((5, 6, 3, 4)))
    with pytest.raises(UserError, match=r"cine\.nii\.gz: has 4 frames"):
        images.read_volume(path, phase)


def test_a_3d_image_has_no_phase(tmp_path):
    with pytest.raises(UserError, match=r"a\.nii: is not a 4D image"):
        images.read_volume(save(tmp_path / "a.nii", array_of((5, 6, 3))), 1)


def test_axes_of_length_one_at_the_end_are_dropped(tmp_path):
    path = save(tmp_path / "a.nii", array_of((5, 6, 1, 1)))
    assert images.read_volume(path).array.shape == (5, 6)


def test_a_2d_nifti_without_a_third_axis_gets_a_normal(tmp_path):
    flat = np.diag([2.0, 3, 0, 1])
    assert coordinates.is_invertible(images._complete_affine(tmp_path, flat, 2))
    with pytest.raises(UserError, match="singular"):
        images._complete_affine(tmp_path, flat, 3)


def gzipped_header(path, dims, itemsize=4):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    raw = bytearray(header.binaryblock)
    raw[40:56] = struct.pack("<8h", len(dims), *dims, *[1] * (7 - len(dims)))
    raw[108:112] = struct.pack("<f", 352)
    path.write_bytes(gzip.compress(bytes(raw) + bytes(1000)))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def damaged_files(folder):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(20, 20, 20)).astype(np.float32)
    for name in ("truncated.nii.gz", "truncated.nii"):
        truncate(save(folder / name, noise))
    for name in ("truncated.nrrd", "truncated.mha", "truncated.png"):
        image = sitk.GetImageFromArray(noise if name[-1] != "g" else array_of((99, 99), np.uint8))
        sitk.WriteImage(image, str(folder / name))
        truncate(folder / name)
    np.save(folder / "truncated.npy", noise)
    truncate(folder / "truncated.npy")
    for name in ("empty.nii.gz", "empty.nii", "empty.npy", "empty.mha", "empty.png"):
        (folder / name).write_bytes(b"")
    for name in ("text.nii.gz", "text.nii", "text.npy", "text.nrrd", "text.jpg", "text.mhd"):
        (folder / name).write_text("this is no image\n" * 30)
    np.save(folder / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    save(folder / "holed.nii.gz", np.full_like(noise, np.nan))
    np.save(folder / "complex.npy", noise.astype(np.complex64))
    np.save(folder / "line.npy", noise.ravel())
    save(folder / "complex.nii.gz", noise.astype(np.complex64))
    save(folder / "colours.nii.gz", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    colours = sitk.GetImageFromArray(array_of((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(folder / "colours.nrrd"))
    save(folder / "vectors.nii.gz", array_of((4, 5, 6, 1, 3)))
    gzipped_header(folder / "huge.nii.gz", (32000, 32000, 32000))
    gzipped_header(folder / "negative.nii.gz", (-5, 4, 3))
    gzipped_header(folder / "hollow.nii.gz", (2000, 2000, 500))
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / "huge.mha"))
    text = (folder / "huge.mha").read_bytes()
    (folder / "huge.mha").write_bytes(
        text.replace(b"DimSize = 20 20 20", b"DimSize = 90000 90000 90000")
    )
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / "alone.mhd"))
    (folder / "alone.raw").unlink()
    return sorted(path for path in folder.iterdir())


def test_every_damaged_file_gives_one_sentence_that_names_it(tmp_path):
    faults = {}
    for path in [*damaged_files(tmp_path), tmp_path / "absent.nii.gz"]:
        with pytest.raises(UserError) as caught:
            images.read_volume(path)
        faults[path.name] = str(caught.value)
    for name, fault in faults.items():
        assert fault.startswith(str(tmp_path / name)), fault
        assert "\n" not in fault, fault
        assert fault.endswith((".", ")")), fault
    assert "cannot hold" in faults["huge.nii.gz"]
    assert "cannot hold" in faults["hollow.nii.gz"]
    assert "cannot hold" in faults["huge.mha"]
    assert "missing" in faults["absent.nii.gz"]
    assert "all voxels are NaN" in faults["holed.nii.gz"]
    assert all(
        "grayscale" in faults[n] for n in ("complex.nii.gz", "colours.nrrd", "colours.nii.gz")
    )


def test_a_damaged_header_never_shows_a_traceback(tmp_path):
    path = save(tmp_path / "a.nii", array_of((5, 6, 7)))
    sound, rng = path.read_bytes(), np.random.default_rng(3)
    for _ in range(100):
        mutated = bytearray(sound)
        for place in rng.integers(0, 348, 4):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        with suppress(UserError):
            assert images.read_volume(path).array.size <= 5 * 6 * 7 * 4


def cut_slab(image, value):
    """Return an image of which one side is padding."""
    padded = image.copy()
    padded[:3] = value
    return padded


@pytest.mark.parametrize("invalid", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("padding", [None, -500.0])
def test_values_that_are_not_finite_become_padding(tmp_path, caplog, padding, invalid):
    image = np.random.default_rng(0).uniform(-9, 9, (10, 9, 8))
    image = image if padding is None else cut_slab(image, padding)
    holed = image.copy()
    holed[5:7, 4, 3] = invalid
    path = save(tmp_path / "holed.nii", holed)
    array = images.read_volume(path).array
    keep = np.ones(holed.shape, bool)
    keep[5:7, 4, 3] = False
    np.testing.assert_allclose(array[keep], image[keep], rtol=1e-6)
    smallest = np.float32(image[keep].min())
    assert (array[~keep] == (smallest if padding is None else padding)).all()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert " 2 of its values" in record.getMessage()


def test_a_label_map_with_values_that_are_not_finite_is_refused(tmp_path):
    labels = np.ones((4, 5, 6), np.float32)
    labels[1, 2, 3] = np.nan
    path = save(tmp_path / "labels.nii", labels)
    image = images.Volume(array_of((4, 5, 6)), AFFINE)
    with pytest.raises(UserError, match=r"labels.nii: 1 voxels are NaN"):
        read_labels(path, image, tmp_path / "image.nii")
