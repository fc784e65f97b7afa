"""DICOM series of random voxels."""

import numpy as np
import SimpleITK as sitk


def array_of(shape, dtype=np.float32):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def write_dicom_file(path, array, position, series="1.2.3", number=1, **tags):
    """Write an array (x, y, slices) as one file at a position, LPS+ mm.

    ``tags``: further values by hexadecimal group and element, as in ``t00200037``.
    """
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing([0.8, 0.9, 3.0])
    values = {
        "0008|0060": "CT",
        "0020|000e": series,
        "0020|000d": "1.2.9",
        "0008|0018": f"{series}.{number}",
        "0020|0013": str(number),
        "0020|0032": "\\".join(map(str, position)),
        "0020|0037": "1\\0\\0\\0\\1\\0",
    }
    values |= {f"{key[1:5]}|{key[5:]}": value for key, value in tags.items()}
    for tag, value in values.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def write_dicom(folder, count=5, series="1.2.3", skip=(), tilt=0.0):
    """Write a series of 3 mm slices, each shifted by ``tilt`` mm along y against the one before."""
    folder.mkdir(exist_ok=True)
    voxels = array_of((6, 7, count), np.int16)
    for k in set(range(count)) - set(skip):
        path = folder / f"{series}_{9 - k}.dcm"
        position = -10, -20 + tilt * k, 30 + 3 * k
        write_dicom_file(path, voxels[:, :, k : k + 1], position, series, k + 1)
    return voxels
