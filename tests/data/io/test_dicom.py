"""DICOM series are read right, or refused with the reason."""

import numpy as np
import pytest

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from tests.helpers.dicom import array_of, write_dicom, write_dicom_file


@pytest.mark.parametrize("tilt", [0.0, 0.6, -1.5])
def test_slices_of_a_tilted_gantry_lie_at_their_positions(tmp_path, caplog, tilt):
    voxels = write_dicom(tmp_path / "ct", tilt=tilt)
    volume = decode_image(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array, voxels)
    last = volume.affine @ [0, 0, 4, 1]
    np.testing.assert_allclose(last[:3], [10, 20 - 4 * tilt, 30 + 12], atol=1e-6)
    np.testing.assert_allclose(volume.affine @ [1, 1, 0, 1], [9.2, 19.1, 30, 1], atol=1e-6)
    assert ["tilted" in message for message in caplog.messages] == [True] * (tilt != 0)


def rescale(path, slope):
    """Write another slope, of two characters, into a file."""
    content = path.read_bytes()
    field = b"\x28\x00\x53\x10\x02\x00\x00\x00"
    assert content.count(field + b"1 ") == 1
    path.write_bytes(content.replace(field + b"1 ", field + slope))


def test_every_slice_has_its_own_rescaling_and_type(tmp_path):
    voxels = array_of((6, 7, 4), np.int16)
    for k, intercept in enumerate(("0", "-1024", "100", "-7")):
        path, position = tmp_path / f"{k}.dcm", (0, 0, 3 * k)
        tags = {"t00281052": intercept, "t00281053": "1"}
        write_dicom_file(path, voxels[:, :, k : k + 1], position, number=k + 1, **tags)
    for k, slope in ((1, b"2 "), (3, b".5")):
        rescale(tmp_path / f"{k}.dcm", slope)
    scaled = decode_image(tmp_path).array
    shifts = voxels.astype(float)
    # the writer stores value - intercept, then the slope is changed
    shifts[..., 1] = (voxels[..., 1] + 1024.0) * 2 - 1024
    shifts[..., 3] = (voxels[..., 3] + 7.0) * 0.5 - 7
    np.testing.assert_array_equal(scaled, shifts)


def test_a_single_file_is_a_slice(tmp_path):
    array = array_of((6, 7, 1), np.int16)
    for name in ("a.dcm", "IM0001"):
        write_dicom_file(tmp_path / "a.dcm", array, (1, 2, 3))
        (tmp_path / "a.dcm").rename(tmp_path / name)
        volume = decode_image(tmp_path / name)
        np.testing.assert_array_equal(volume.array, array[..., 0])
        np.testing.assert_allclose(volume.affine[:3, 3], [-1, -2, 3])


SLICES = array_of((6, 7, 8), np.int16)


def write_slices(folder, positions, **tags):
    """Write one slice at each position (x, y, z)."""
    for k, position in enumerate(positions):
        array = SLICES[:, :, k : k + 1]
        write_dicom_file(folder / f"{k}.dcm", array, position, number=k + 1, **tags)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([(0, 0, z) for z in (0, 3, 6, 0, 3, 6)], "holds 2 images at each of 3 positions"),
        ([(0, 0, z) for z in (0, 0, 0)], "holds 3 images at each of 1 positions"),
        ([(0, 0, z) for z in (0, 3, 6, 6)], r"doubled, \d.dcm and \d.dcm"),
        ([(0, 0, z) for z in (0, 3, 3.01, 6, 9)], r"doubled, \d.dcm and \d.dcm"),
        ([(0, 0, z) for z in (0, 0)], "doubled"),
        ([(0, 0, z) for z in (0, 3, 6, 12)], "missing, 2.dcm and 3.dcm are 6 mm"),
        ([(0, 0, z) for z in (0, 1, 2, 40, 41)], "missing, 2.dcm and 3.dcm are 38 mm"),
        ([(0, y, z) for y, z in ((0, 0), (2, 3), (0, 6), (0, 9))], "not equally spaced"),
    ],
)
def test_a_series_that_is_no_regular_volume_is_refused(tmp_path, positions, message):
    write_slices(tmp_path, positions)
    with pytest.raises(UserError, match=message) as caught:
        decode_image(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("array", "tags", "message"),
    [
        (SLICES[:5, :, :1], {}, "differ in size"),
        (SLICES[:, :, :1], {"t00200037": "1\\0\\0\\0\\0\\1"}, "differ in orientation"),
        (SLICES[:, :, :3], {}, "3 frames in one file"),
    ],
)
def test_files_that_are_no_slices_of_one_volume_are_refused(tmp_path, array, tags, message):
    write_slices(tmp_path, [(0, 0, 0), (0, 0, 3)])
    write_dicom_file(tmp_path / "2.dcm", array, (0, 0, 6), number=3, **tags)
    with pytest.raises(UserError, match=message):
        decode_image(tmp_path)


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"])
@pytest.mark.parametrize("name", ["a.dcm", "."])
def test_enhanced_multi_frame_files_are_refused(tmp_path, kind, name):
    write_dicom_file(tmp_path / "a.dcm", SLICES, (0, 0, 0), t00080016=kind)
    with pytest.raises(UserError, match=r"a\.dcm: holds 8 frames in one file.*dcm2niix"):
        decode_image(tmp_path / name)
