"""One reader per family of image formats; each returns an array and its affine.

Arrays are in the file's own index order, affines lead to millimetres, RAS+.  Headers are checked
before memory is allocated for the voxels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.header_checks import check_size, open_itk_reader

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
MAX_GAP_DEVIATION = 0.05  # of the median distance between DICOM slices
NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgh", ".mgz")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")

ArrayAndAffine = tuple[NDArray, coordinates.Matrix]


def _require_grayscale(path: Path, grayscale: bool) -> None:
    if not grayscale:
        raise UserError(
            f"{path}: has colours, vectors or complex values; give one grayscale image."
        )


def read_nibabel(path: Path) -> ArrayAndAffine:
    """Read NIfTI, Analyze and MGH."""
    image = cast(SpatialImage, nibabel.load(path, mmap=False))
    dtype = np.dtype(image.get_data_dtype())
    _require_grayscale(path, dtype.kind in "biuf")
    check_size(path, image.shape, dtype.itemsize)
    return np.asarray(image.dataobj), np.asarray(image.affine, np.float64)


def read_numpy(path: Path) -> ArrayAndAffine:
    """Read ``.npy`` as voxels of 1 mm."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _require_grayscale(path, array.dtype.kind in "biuf")
    return np.array(array), np.eye(4)


def read_itk(path: Path) -> ArrayAndAffine:
    """Read NRRD, MetaImage, pictures (as luminance) and other formats of SimpleITK."""
    reader = open_itk_reader(path)
    pixel_type = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    is_picture = path.suffix.lower() in PICTURE_SUFFIXES
    _require_grayscale(
        path, "complex" not in pixel_type and (is_picture or "vector" not in pixel_type)
    )
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image)  # (z, y, x), (y, x) or (y, x, channel)
    if is_picture and array.ndim == 3:
        array = array[..., :3] @ np.array(LUMINANCE_WEIGHTS, np.float32)
    return array.T, coordinates.affine_from_sitk(image)


def _compute_slice_positions(files: tuple[str, ...]) -> NDArray[np.float64]:
    """Compute the position of each DICOM slice in mm along the normal of the last one."""
    reader, origins = sitk.ImageFileReader(), []
    for file in files:
        reader.SetFileName(file)
        reader.ReadImageInformation()
        check_size(Path(file), reader.GetSize(), 1)
        origins.append(reader.GetOrigin()[:3])
    normal = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:3, 2]
    return np.array(origins) @ normal


def read_dicom(folder: Path) -> ArrayAndAffine:
    """Read the only series of a DICOM folder.

    Raises:
        UserError: There is none, there are several, or its slices are not equally spaced.
    """
    warnings_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warnings_shown)
    if len(series) != 1:
        number = (
            f"{len(series)} DICOM series ({', '.join(series)})" if series else "no DICOM series"
        )
        raise UserError(f"{folder}: holds {number}; give a folder with exactly one.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    gaps = np.abs(np.diff(_compute_slice_positions(files)))
    if gaps.size and np.ptp(gaps) > MAX_GAP_DEVIATION * (usual := np.median(gaps)):
        worst = int(np.argmax(np.abs(gaps - usual)))
        first, second = (Path(file).name for file in files[worst : worst + 2])
        raise UserError(
            f"{folder}: a slice is missing or doubled, {first} and {second} are "
            f"{gaps[worst]:.4g} mm apart and most others {usual:.4g} mm."
        )
    image = sitk.ReadImage(files)
    _require_grayscale(folder, image.GetNumberOfComponentsPerPixel() == 1)
    return sitk.GetArrayFromImage(image).T, coordinates.affine_from_sitk(image)


def find_reader(path: Path) -> Callable[[Path], ArrayAndAffine]:
    """Return the function that reads a file, by its suffix, or a folder."""
    if path.is_dir():
        return read_dicom
    if path.name.lower().endswith(NIBABEL_SUFFIXES):
        return read_nibabel
    return read_numpy if path.suffix.lower() == ".npy" else read_itk
