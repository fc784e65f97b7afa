"""Files too small for their header are refused before memory is allocated."""

import gzip
import struct
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.serialization import decode_nifti
from regnet_lab.spatial import read_transform
from regnet_lab.utils.profiling import Profile

MAX_MEGABYTES = 64  # for reading a header; every image here promises 400 and more


def write_nifti(path, shape, intent=0):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    raw = bytearray(header.binaryblock)
    raw[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    raw[68:70] = struct.pack("<h", intent)
    raw[108:112] = struct.pack("<f", 352)
    content = bytes(raw) + bytes(1000)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_meta_image(path, shape, more=""):
    sizes = " ".join(map(str, shape))
    text = f"ObjectType = Image\nNDims = {len(shape)}\nBinaryData = True\n{more}DimSize = {sizes}\n"
    text += "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    path.write_bytes(text.encode() + bytes(200000))
    return path


def write_nrrd(path, shape, encoding="raw"):
    sizes = " ".join(map(str, shape))
    text = f"NRRD0004\ntype: float\ndimension: {len(shape)}\nsizes: {sizes}\nendian: little\n"
    path.write_bytes(f"{text}encoding: {encoding}\n\n".encode() + bytes(200000))
    return path


def write_png(path, width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    return path


def encode_npy(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode() + bytes(100)


def write_npy(path, shape):
    path.write_bytes(encode_npy(shape))
    return path


def write_npz(path, shape):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", encode_npy(shape))
    return path


def write_dicom(folder, rows, columns):
    folder.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(np.ones((1, 8, 9), np.int16))
    uids = {"0020|000d": "1.2.3", "0020|000e": "1.2.3.4", "0008|0018": "1.2.3.4.5"}
    for key, value in {"0008|0060": "MR", **uids}.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "a.dcm"))
    writer.Execute(image)
    content = (folder / "a.dcm").read_bytes()
    for tag, size, promised in ((0x10, 8, rows), (0x11, 9, columns)):
        field = struct.pack("<HHIH", 0x28, tag, 2, size)
        assert content.count(field) == 1
        content = content.replace(field, field[:8] + struct.pack("<H", promised))
    (folder / "a.dcm").write_bytes(content)
    return folder


LARGE = (500, 500, 500)
FILES = {
    "a.nii": (decode_image, lambda path: write_nifti(path, LARGE)),
    "a.nii.gz": (decode_image, lambda path: write_nifti(path, LARGE)),
    "a.mha": (decode_image, lambda path: write_meta_image(path, LARGE)),
    "packed.mha": (
        decode_image,
        lambda path: write_meta_image(path, LARGE, "CompressedData = True\n"),
    ),
    "a.nrrd": (decode_image, lambda path: write_nrrd(path, LARGE)),
    "packed.nrrd": (decode_image, lambda path: write_nrrd(path, LARGE, "gzip")),
    "a.png": (decode_image, lambda path: write_png(path, 30000, 30000)),
    "a.npy": (decode_image, lambda path: write_npy(path, LARGE)),
    "a_dicom_folder": (decode_image, lambda path: write_dicom(path, 65535, 65535)),
    "field.nii": (read_transform, lambda path: write_nifti(path, (*LARGE, 1, 3), 1007)),
    "disp_1_2.nii.gz": (read_transform, lambda path: write_nifti(path, (*LARGE, 3))),
    "field.mha": (
        read_transform,
        lambda path: write_meta_image(path, LARGE, "ElementNumberOfChannels = 3\n"),
    ),
    "field.nrrd": (read_transform, lambda path: write_nrrd(path, (3, *LARGE))),
    "disp_1_2.npz": (read_transform, lambda path: write_npz(path, (3, *LARGE))),
}


@pytest.mark.parametrize("name", FILES)
def test_impossible_sizes_are_refused_before_memory_is_allocated(name, tmp_path):
    read, make = FILES[name]
    path = make(tmp_path / name)
    with Profile(torch.device("cpu")) as idle:
        pass
    with Profile(torch.device("cpu")) as profile, pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert profile.peak_mb < idle.peak_mb + MAX_MEGABYTES


def test_a_dicom_folder_of_the_true_size_is_read(tmp_path):
    assert decode_image(write_dicom(tmp_path / "valid", 8, 9)).array.shape == (9, 8)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_files_of_the_promised_size_are_read(tmp_path, ending, compressed):
    array = np.zeros((30, 40, 50), np.float64)  # compresses as much as deflate can
    path = tmp_path / f"valid{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), compressed)
    assert decode_image(path).array.shape == (50, 40, 30)


def test_a_submitted_field_larger_than_its_file_is_refused(tmp_path):
    content = write_nifti(tmp_path / "a.nii.gz", (*LARGE, 3)).read_bytes()
    with Profile(torch.device("cpu")) as idle:
        pass
    with Profile(torch.device("cpu")) as profile, pytest.raises(ValueError, match="promises"):
        decode_nifti(content, 10**9)
    assert profile.peak_mb < idle.peak_mb + MAX_MEGABYTES
