"""One reader per family of image formats; each returns an array and its affine.

Arrays are in the file's own index order, affines lead to millimetres, RAS+.  Headers are checked
before memory is allocated for the voxels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from regnet_lab.data.io.dicom import read_dicom
from regnet_lab.data.io.pictures import PICTURE_READERS, read_picture_spacing
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.header_checks import check_size, open_itk_reader
from regnet_lab.spatial.nifti import read_affine
from regnet_lab.spatial.voxel_files import TEXT_HEADER_SUFFIXES

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601
NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".mgh", ".mgz")
DICOM_READER = "GDCMImageIO"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")

ArrayAndAffine = tuple[NDArray, coordinates.Matrix]


def _require_grayscale(path: Path, grayscale: bool) -> None:
    if not grayscale:
        raise UserError(
            f"{path}: has colours, vectors or complex values; give one grayscale image."
        )


def _to_native_order(array: NDArray) -> NDArray:
    """Return the array in the byte order of this computer, which PyTorch and ITK require."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_nibabel(path: Path) -> ArrayAndAffine:
    """Read NIfTI, Analyze and MGH."""
    with LoggingOutputSuppressor():  # the geometry is read anew below
        image = cast(SpatialImage, nibabel.load(path, mmap=False))
    dtype = np.dtype(image.get_data_dtype())
    _require_grayscale(path, dtype.kind in "biuf")
    check_size(path, image.shape, dtype.itemsize)
    affine: coordinates.Matrix = np.asarray(image.affine, np.float64)
    if isinstance(image, nibabel.Nifti1Pair):
        affine = read_affine(path, image)
    return _to_native_order(np.asarray(image.dataobj)), affine


def read_numpy(path: Path) -> ArrayAndAffine:
    """Read ``.npy`` as voxels of 1 mm."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _require_grayscale(path, array.dtype.kind in "biuf")
    return _to_native_order(np.array(array)), np.eye(4)


def _find_itk_reader(path: Path) -> str:
    """Return the name of ITK's reader for a file, or nothing for MetaImage and NRRD."""
    if path.suffix.lower() in TEXT_HEADER_SUFFIXES:
        return ""
    return sitk.ImageFileReader.GetImageIOFromFileName(str(path))


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
    if (itk_reader := _find_itk_reader(path)) in PICTURE_READERS:
        spacing = read_picture_spacing(path, array.T.shape, itk_reader)
        size = np.diag([*spacing, *[1.0] * (4 - array.ndim)])
        return array.T, coordinates.RAS_TO_LPS @ size
    return array.T, coordinates.affine_from_sitk(image)


def find_reader(path: Path) -> Callable[[Path], ArrayAndAffine]:
    """Return the function that reads a file, or a folder."""
    if path.is_dir():
        return read_dicom
    if path.name.lower().endswith(NIBABEL_SUFFIXES):
        return read_nibabel
    if path.suffix.lower() == ".npy":
        return read_numpy
    is_picture = path.suffix.lower() in PICTURE_SUFFIXES
    return read_itk if is_picture or _find_itk_reader(path) != DICOM_READER else read_dicom
