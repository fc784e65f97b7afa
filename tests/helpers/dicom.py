"""DICOM series of random voxels."""

import numpy as np
import SimpleITK as sitk  # noqa: N813


def array_of(shape, dtype=np.float32):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def write_dicom(folder, count=5, series="1.2.3", skip=()):
    folder.mkdir(exist_ok=True)
    voxels = array_of((6, 7, count), np.int16)
    for k in set(range(count)) - set(skip):
        image = sitk.GetImageFromArray(voxels[:, :, k : k + 1].T)
        image.SetSpacing([0.8, 0.9, 3.0])
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": series,
            "0020|000d": "1.2.9",
            "0008|0018": f"{series}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": f"-10\\-20\\{30 + 3 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{series}_{9 - k}.dcm"))
        writer.Execute(image)
    return voxels
