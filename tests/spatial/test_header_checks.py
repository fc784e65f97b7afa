"""A header that promises more than its file holds is refused before memory is taken."""

import gzip
import struct
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab.data.io.images import decode
from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission.serialization import nifti_array
from regnet_lab.spatial import read_transform
from regnet_lab.utils.profiling import Profile

MB = 64  # that may come and go while a header is read; every image here promises 400 and more


def nifti(path, shape, intent=0):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    raw = bytearray(header.binaryblock)
    raw[40:56] = struct.pack("<8h", len(shape), *shape, *[1] * (7 - len(shape)))
    raw[68:70] = struct.pack("<h", intent)
    raw[108:112] = struct.pack("<f", 352)
    content = bytes(raw) + bytes(1000)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def meta(path, shape, more=""):
    sizes = " ".join(map(str, shape))
    text = f"ObjectType = Image\nNDims = {len(shape)}\nBinaryData = True\n{more}DimSize = {sizes}\n"
    text += "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    path.write_bytes(text.encode() + bytes(200000))
    return path


def nrrd(path, shape, encoding="raw"):
    sizes = " ".join(map(str, shape))
    text = f"NRRD0004\ntype: float\ndimension: {len(shape)}\nsizes: {sizes}\nendian: little\n"
    path.write_bytes(f"{text}encoding: {encoding}\n\n".encode() + bytes(200000))
    return path


def png(path, width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    return path


def array_bytes(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.encode() + bytes(100)


def npy(path, shape):
    path.write_bytes(array_bytes(shape))
    return path


def npz(path, shape):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", array_bytes(shape))
    return path


def dicom(folder, rows, columns):
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
    for tag, own, new in ((0x10, 8, rows), (0x11, 9, columns)):
        old = struct.pack("<HHIH", 0x28, tag, 2, own)
        assert content.count(old) == 1
        content = content.replace(old, old[:8] + struct.pack("<H", new))
    (folder / "a.dcm").write_bytes(content)
    return folder


LARGE = (500, 500, 500)
FILES = {
    "a.nii": (decode, lambda path: nifti(path, LARGE)),
    "a.nii.gz": (decode, lambda path: nifti(path, LARGE)),
    "a.mha": (decode, lambda path: meta(path, LARGE)),
    "packed.mha": (decode, lambda path: meta(path, LARGE, "CompressedData = True\n")),
    "a.nrrd": (decode, lambda path: nrrd(path, LARGE)),
    "packed.nrrd": (decode, lambda path: nrrd(path, LARGE, "gzip")),
    "a.png": (decode, lambda path: png(path, 30000, 30000)),
    "a.npy": (decode, lambda path: npy(path, LARGE)),
    "a_dicom_folder": (decode, lambda path: dicom(path, 65535, 65535)),
    "field.nii": (read_transform, lambda path: nifti(path, (*LARGE, 1, 3), 1007)),
    "disp_1_2.nii.gz": (read_transform, lambda path: nifti(path, (*LARGE, 3))),
    "field.mha": (read_transform, lambda path: meta(path, LARGE, "ElementNumberOfChannels = 3\n")),
    "field.nrrd": (read_transform, lambda path: nrrd(path, (3, *LARGE))),
    "disp_1_2.npz": (read_transform, lambda path: npz(path, (3, *LARGE))),
}


@pytest.mark.parametrize("name", FILES)
def test_an_absurd_size_is_refused_before_memory_is_taken(name, tmp_path):
    read, make = FILES[name]
    path = make(tmp_path / name)
    with Profile(torch.device("cpu")) as idle:
        pass
    with Profile(torch.device("cpu")) as profile, pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert profile.peak_mb < idle.peak_mb + MB


def test_a_dicom_folder_with_its_true_size_is_read(tmp_path):
    assert decode(dicom(tmp_path / "sound", 8, 9)).array.shape == (9, 8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_files_that_hold_what_they_promise_are_read(tmp_path, ending, packed):
    array = np.zeros((30, 40, 50), np.float64)  # as dense as a deflate stream becomes
    path = tmp_path / f"sound{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path), packed)
    assert decode(path).array.shape == (50, 40, 30)


def test_a_submitted_field_larger_than_its_file_is_refused(tmp_path):
    content = nifti(tmp_path / "a.nii.gz", (*LARGE, 3)).read_bytes()
    with Profile(torch.device("cpu")) as idle:
        pass
    with Profile(torch.device("cpu")) as profile, pytest.raises(ValueError, match="promises"):
        nifti_array(content, 10**9)
    assert profile.peak_mb < idle.peak_mb + MB
