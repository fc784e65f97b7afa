"""MetaImage and NRRD headers with voxel files of their own, as SimpleITK reads them."""

import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.spatial.header_checks import list_image_files

VOXELS = np.arange(120, dtype="<f4").reshape(6, 5, 4)
HEADERS = {
    "a.mhd": (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "DimSize = 4 5 6\nElementType = MET_FLOAT\nElementDataFile = "
    ),
    "a.nhdr": (
        "NRRD0004\ntype: float\ndimension: 3\nsizes: 4 5 6\nendian: little\nencoding: raw\n"
        "data file: "
    ),
}
NAMES = "\n".join(f"slice é {k:03d}.raw" for k in range(1, 7))


def write_files(folder):
    """Write the voxels in one file and in slices."""
    (folder / "sub").mkdir()
    for name in ("all.raw", "sub/all.raw", "x=1, y.raw"):
        VOXELS.tofile(folder / name)
    for k, plane in enumerate(VOXELS, start=1):
        plane.tofile(folder / f"slice é {k:03d}.raw")
        plane.tofile(folder / f"z{k:03d}.raw")
        plane.tofile(folder / f"z{2 * k}.raw")


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(
    ("value", "count"),
    [
        ("all.raw", 1),
        ("x=1, y.raw", 1),
        ("sub/all.raw", 1),
        (f"LIST\n{NAMES}", 6),
        (f"LIST 2\n{NAMES}", 6),
        (f"LIST\r\n{NAMES}".replace("raw\n", "raw\r\n"), 6),
        ("z%03d.raw 1 6 1", 6),
        ("z%d.raw 2 12 2", 6),
    ],
)
def test_separate_voxel_files_are_read(tmp_path, name, value, count):
    write_files(tmp_path)
    (tmp_path / name).write_bytes(f"{HEADERS[name]}{value}\n".encode())
    np.testing.assert_array_equal(decode_image(tmp_path / name).array, VOXELS.T)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
    np.testing.assert_array_equal(expected, VOXELS)
    assert len(list_image_files(tmp_path / name)) == 1 + count


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("../all.raw", "the name of a file in or below"),
        ("sub/../../all.raw", "the name of a file in or below"),
        ("/etc/hostname", "the name of a file in or below"),
        ("C:\\all.raw", "the name of a file in or below"),
        ("LIST\nz001.raw\n../z002.raw", "the name of a file in or below"),
        ("LIST\nz%n.raw", "the name of a file in or below"),
        ("z%n%n.raw 1 6 1", "pattern"),
        ("z%s.raw 1 6 1", "pattern"),
        ("z%03d.raw", "pattern"),
        ("z%03d.raw 1 6", "pattern"),
        ("z%03d%s.raw 1 6 1", "pattern"),
        ("z%99999d.raw 1 6 1", "pattern"),
        ("z%d.raw 1 6 0", "first, last and step"),
        ("z%d.raw 6 1 1", "first, last and step"),
        ("z%d.raw 1 2000000000 1", "first, last and step"),
        ("z%03d.raw 1 9 1", "z007.raw is missing"),
        ("none.raw", "none.raw is missing"),
    ],
)
def test_unsafe_and_missing_voxel_files_never_reach_itk(
    tmp_path, monkeypatch, name, value, message
):
    write_files(tmp_path)
    (tmp_path / name).write_text(f"{HEADERS[name]}{value}\n")
    monkeypatch.setattr(sitk.ImageFileReader, "ReadImageInformation", pytest.fail)
    with pytest.raises(UserError, match=message) as caught:
        decode_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("LIST 1\n" + NAMES, "lists voxel files of 1 axes"),
        ("z%03d.raw 1 6 1 2", "pattern"),
        ("all.raw\rElementDataFile = z%n.raw 1 2 1", "all.raw"),
    ],
)
def test_what_itk_would_misread_in_a_meta_image_is_refused(tmp_path, header, message):
    write_files(tmp_path)
    (tmp_path / "all.raw").unlink()
    (tmp_path / "a.mhd").write_text(HEADERS["a.mhd"] + header + "\n")
    with pytest.raises(UserError, match=message):
        decode_image(tmp_path / "a.mhd")


def test_a_meta_image_names_its_voxels_once(tmp_path):
    write_files(tmp_path)
    header = HEADERS["a.mhd"].replace("ElementDataFile", "Comment = ElementDataFile = z%n.raw\r")
    for text in (header, f"{header}ElementDataFile = all.raw\n"):
        (tmp_path / "a.mhd").write_text(text)
        with pytest.raises(UserError, match="one ElementDataFile"):
            decode_image(tmp_path / "a.mhd")


@pytest.mark.parametrize("name", HEADERS)
def test_separate_files_too_small_for_the_header_are_refused(tmp_path, name):
    write_files(tmp_path)
    (tmp_path / "z006.raw").write_bytes(b"")
    (tmp_path / name).write_text(f"{HEADERS[name]}z%03d.raw 1 6 1\n".replace("4 5 6", "4 50 6"))
    with pytest.raises(UserError, match="cannot hold"):
        decode_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "field", "unit"),
    [
        ("a.mhd", "DistanceUnits = um", "um"),
        ("a.mhd", "DistanceUnits = mm", None),
        ("a.nhdr", 'units: "m" "mm" "mm"', "m"),
        ("a.nhdr", 'units: "mm" "mm" "mm"', None),
        ("a.nhdr", 'space: left-posterior-superior\nspace units: "um" "um" "um"', "um"),
    ],
)
def test_units_that_itk_ignores_are_named(tmp_path, caplog, name, field, unit):
    write_files(tmp_path)
    text = HEADERS[name].replace("ElementType", f"{field}\nElementType")
    text = text.replace("endian", f"{field}\nendian")
    if "space:" in field:
        text = text.replace("endian", "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian")
    (tmp_path / name).write_text(f"{text}all.raw\n")
    np.testing.assert_array_equal(decode_image(tmp_path / name).spacing, [1, 1, 1])
    expected = [] if unit is None else [f"although the header states {unit}."]
    assert [message.split(", ")[-1] for message in caplog.messages] == expected
