"""Pixel sizes of pictures."""

import logging

import numpy as np
import pytest
from PIL import Image

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError

PIXELS = np.arange(30 * 50, dtype=np.uint8).reshape(30, 50)
OME = '<?xml version="1.0"?><OME><Image ID="i"><Pixels ID="p" {}/></Image></OME>'


def save(path, array=PIXELS, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("options", [{}, {"dpi": (300, 300)}])
def test_resolution_tags_are_not_taken_as_millimetres(tmp_path, caplog, name, options):
    caplog.set_level(logging.INFO)
    path = save(tmp_path / name, **options)
    volumes = [decode_image(path) for _ in range(2)]
    np.testing.assert_array_equal(volumes[1].affine, np.diag([-1, -1, 1, 1]))
    assert [str(path) in message and "1 mm" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="2" PhysicalSizeYUnit="nm"', 1),
        ('PhysicalSizeX="5e-7" PhysicalSizeXUnit="m" PhysicalSizeY="2" PhysicalSizeYUnit="nm"', 1),
        (
            'PhysicalSizeX="0.5" PhysicalSizeXUnit="&#181;m" '
            'PhysicalSizeY="2e-6" PhysicalSizeYUnit="mm"',
            1,
        ),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.5"', 0),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="pixel" PhysicalSizeY="2"', 0),
        ('PhysicalSizeX="-1" PhysicalSizeXUnit="mm" PhysicalSizeY="2" PhysicalSizeYUnit="mm"', 0),
        ('PhysicalSizeX="a" PhysicalSizeXUnit="mm" PhysicalSizeY="2" PhysicalSizeYUnit="mm"', 0),
    ],
)
def test_the_pixel_size_of_ome_tiff_counts_if_its_unit_is_stated(tmp_path, attributes, spacing):
    description = OME.format(attributes).encode()
    path = save(tmp_path / "a.ome.tif", tiffinfo={270: description}, dpi=(300, 300))
    expected = [5e-4, 2e-6] if spacing else [1, 1]
    volume = decode_image(path)
    np.testing.assert_allclose(volume.spacing, expected)
    np.testing.assert_array_equal(volume.array, PIXELS.T)


def test_the_pages_of_ome_tiff_must_be_slices(tmp_path):
    size = " ".join(f'PhysicalSize{a}="2" PhysicalSize{a}Unit="mm"' for a in "XYZ")
    pages = [Image.fromarray(PIXELS + k) for k in range(3)]
    for depth in (3, 1):
        description = OME.format(f'{size} SizeZ="{depth}"').encode()
        path = tmp_path / f"{depth}.ome.tif"
        pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo={270: description})
    np.testing.assert_allclose(decode_image(tmp_path / "3.ome.tif").spacing, [2, 2, 2])
    with pytest.raises(UserError, match=r"1\.ome\.tif: its 3 pages are 1 slices"):
        decode_image(tmp_path / "1.ome.tif")
