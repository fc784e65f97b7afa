"""Impossible MetaImage headers are refused before ITK parses them."""

import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError


def write(path, **changes):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    sitk.WriteImage(image, str(path))
    content = path.read_bytes()
    for name, value in changes.items():
        lines = content.split(b"\n")
        known = [n for n, line in enumerate(lines) if line.startswith(f"{name} =".encode())]
        line = f"{name} = {value}".encode()
        if known:
            lines[known[0]] = line
        else:
            lines.insert(1, line)
        content = b"\n".join(lines)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_valid_header_is_read(tmp_path, suffix):
    array = decode_image(write(tmp_path / f"a{suffix}")).array
    np.testing.assert_array_equal(array.T.ravel(), np.arange(24))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NDims", "60"),
        ("NDims", "-1"),
        ("NDims", "x"),
        ("NDims", "9" * 30),
        ("DimSize", "4 3"),
        ("DimSize", "4 3 0"),
        ("DimSize", "4 3 -2"),
        ("DimSize", "4 3 99999999999999"),
        ("ElementType", "MET_STRING"),
        ("ElementType", "%n%n"),
        ("ElementNumberOfChannels", "1000000000"),
        ("ElementNumberOfChannels", "-1"),
        ("HeaderSize", "-9"),
        ("CompressedDataSize", "-5"),
    ],
)
def test_an_impossible_value_is_named(tmp_path, name, value):
    path = write(tmp_path / "a.mha", **{name: value})
    with pytest.raises(
        UserError, match=rf"a\.mha: {name} is '.*' *, but must be .*header"
    ) as error:
        decode_image(path)
    assert "\n" not in str(error.value)


def test_a_size_that_the_file_cannot_hold_is_refused(tmp_path):
    path = write(tmp_path / "a.mha", DimSize="4000 3000 2000")
    with pytest.raises(UserError, match="4000 x 3000 x 2000 voxels, which a file of"):
        decode_image(path)
