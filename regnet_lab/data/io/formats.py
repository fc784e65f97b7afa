"""One function for each family of file formats: array in the file's index order, affine to RAS mm.

Headers are checked before any memory is taken for the voxels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.header_checks import check_size, itk_reader
from regnet_lab.spatial.header_checks import files_of as files_of

GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue, ITU-R BT.601
UNEVEN = 0.05  # of the usual distance between DICOM slices
NIBABEL = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgh", ".mgz")
PICTURES = (".png", ".jpg", ".jpeg")

Raw = tuple[NDArray, coordinates.Matrix]


def _check_grey(path: Path, grey: bool) -> None:
    if not grey:
        raise UserError(f"{path}: has colours, vectors or complex values; give one grey image.")


def read_nibabel(path: Path) -> Raw:
    """NIfTI, Analyze and MGH."""
    image = nibabel.load(path, mmap=False)
    dtype = np.dtype(image.get_data_dtype())  # type: ignore[attr-defined]
    _check_grey(path, dtype.kind in "biuf")
    check_size(path, image.shape, dtype.itemsize)  # type: ignore[attr-defined]
    return np.asarray(image.dataobj), np.asarray(image.affine, np.float64)  # type: ignore[attr-defined]


def read_numpy(path: Path) -> Raw:
    """``.npy``, in voxels of 1 mm."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_grey(path, array.dtype.kind in "biuf")
    return np.array(array), np.eye(4)


def _luminance(image: sitk.Image) -> NDArray:
    """(x, y) of a picture of one, three or four channels."""
    array = sitk.GetArrayFromImage(image)
    return (array[..., :3] @ np.array(GREY, np.float32) if array.ndim == 3 else array).T


def read_itk(path: Path) -> Raw:
    """NRRD, MetaImage, pictures (as luminance) and whatever else SimpleITK knows."""
    reader = itk_reader(path)
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    picture = path.suffix.lower() in PICTURES
    _check_grey(path, "complex" not in kind and (picture or "vector" not in kind))
    image = reader.Execute()
    array = _luminance(image) if picture else sitk.GetArrayFromImage(image).T
    return array, coordinates.affine_of(image)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without ITK's warnings on the terminal."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _slice_positions(names: tuple[str, ...]) -> NDArray[np.float64]:
    """Millimetres of each DICOM slice along the normal of the last."""
    reader, origins = sitk.ImageFileReader(), []
    for name in names:
        reader.SetFileName(name)
        reader.ReadImageInformation()
        check_size(Path(name), reader.GetSize(), 1)
        origins.append(reader.GetOrigin()[:3])
    normal = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:3, 2]
    return np.array(origins) @ normal


def read_dicom(folder: Path) -> Raw:
    """The one series of a folder.

    Raises:
        UserError: There is none, there are several, or its slices lie unevenly.
    """
    with _quietly():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = f"{len(series)} DICOM series ({', '.join(series)})" if series else "no DICOM series"
        raise UserError(f"{folder}: holds {found}; give a folder with exactly one.")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    gaps = np.abs(np.diff(_slice_positions(names)))
    if gaps.size and np.ptp(gaps) > UNEVEN * np.median(gaps):
        odd = int(np.argmax(np.abs(gaps - np.median(gaps))))
        raise UserError(
            f"{folder}: a slice is missing or doubled, {Path(names[odd]).name} and "
            f"{Path(names[odd + 1]).name} are {gaps[odd]:.4g} mm apart and most others "
            f"{np.median(gaps):.4g} mm."
        )
    image = sitk.ReadImage(names)
    _check_grey(folder, image.GetNumberOfComponentsPerPixel() == 1)
    return sitk.GetArrayFromImage(image).T, coordinates.affine_of(image)


def reader_of(path: Path) -> Callable[[Path], Raw]:
    """The function that reads a file, by the end of its name, or a folder."""
    if path.is_dir():
        return read_dicom
    if path.name.lower().endswith(NIBABEL):
        return read_nibabel
    return read_numpy if path.suffix.lower() == ".npy" else read_itk
