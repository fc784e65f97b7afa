"""Transforms in: files of ITK, ANTs, FSL and Learn2Reg as transforms of LPS+ millimetres."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError
from regnet_lab.spatial import fsl, learn2reg
from regnet_lab.spatial.header_checks import check_size, itk_reader
from regnet_lab.spatial.image_grid import Frame, field_transform

VECTOR = 1007  # NIfTI's intent code of ITK's displacements
NIFTI = (".nii", ".nii.gz")
FIELDS = (".nrrd", ".nhdr", ".mha", ".mhd")
TEXT = 1e6  # bytes
LARGEST = 2**33  # bytes of an array
UNREADABLE = (
    RuntimeError,
    MemoryError,
    KeyError,
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    nibabel.filebasedimages.ImageFileError,
)


def _is_text(path: Path) -> bool:
    """Whether a file is short and printable."""
    if path.stat().st_size > TEXT:
        return False
    content = path.read_bytes()
    return b"\0" not in content and content.isascii()


def _itk_field(path: Path) -> sitk.Transform:
    image = itk_reader(path).Execute()
    if image.GetNumberOfComponentsPerPixel() != image.GetDimension():
        raise UserError(f"{path}: is no field of displacements, but an image; give a transform.")
    return field_transform(image)


def _nifti(path: Path, fixed: Frame | None, moving: Frame | None) -> sitk.Transform:
    image: nibabel.Nifti1Image = nibabel.load(path)  # type: ignore[assignment]
    code, shape = int(image.header["intent_code"]), image.shape
    check_size(path, shape, image.get_data_dtype().itemsize)
    if len(shape) == 5 and code == VECTOR:
        return _itk_field(path)
    if code in fsl.INTENTS:
        return field_transform(fsl.read_warp(path, image, moving))
    if path.name.startswith(("disp_", "l2r_")) and len(shape) in (3, 4):
        u = np.asarray(image.dataobj, np.float64)
        return field_transform(learn2reg.read(path, u, fixed, moving))
    raise UserError(
        f"{path}: {len(shape)} axes and intent code {code} do not say whose displacements these "
        "are: ITK's and ANTs' have 5 and 1007, FSL's 4 and 2006, and Learn2Reg's names begin with "
        "disp_."
    )


def check_arrays(path: Path) -> None:
    """Refuse an ``.npz`` whose arrays are larger than what is stored of them.

    Raises:
        UserError: One is.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, _, dtype = read(file)
            if math.prod(shape) * dtype.itemsize > min(member.file_size, LARGEST):
                raise UserError(f"{path}: promises {shape} numbers, which it does not hold.")


def _learn2reg(path: Path, fixed: Frame | None, moving: Frame | None) -> sitk.Transform:
    check_arrays(path)
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise UserError(f"{path}: holds {len(arrays.files)} arrays; a displacement is one.")
        u = arrays[arrays.files[0]].astype(np.float64)
    return field_transform(learn2reg.read(path, u, fixed, moving))


def _any(path: Path, fixed: Frame | None, moving: Frame | None) -> sitk.Transform:
    name = path.name.lower()
    if name.endswith(NIFTI):
        return _nifti(path, fixed, moving)
    if name.endswith(".npz"):
        return _learn2reg(path, fixed, moving)
    if name.endswith(FIELDS):
        return _itk_field(path)
    if name.endswith(".mat") and _is_text(path):
        return fsl.read_matrix(path, fixed, moving)
    return sitk.ReadTransform(str(path))


def read_transform(
    path: str | Path, fixed: Frame | None = None, moving: Frame | None = None
) -> sitk.Transform:
    """A transform from the fixed image's world to the moving image's.

    ITK's ``.h5``, ``.tfm``, ``.txt`` and ``.mat`` (ANTs' affine too); a field as 5-D NIfTI with
    intent 1007, NRRD or MetaImage (ITK, ANTs); FSL's warp (4-D, intent 2006) and FLIRT's matrix;
    Learn2Reg's ``.npz``, and ``.nii.gz`` if its name begins with ``disp_``.

    Args:
        path: The file.
        fixed: Frame of the image resampled onto, for Learn2Reg's files and FLIRT's matrix.
        moving: Frame of the image resampled, for these and FSL's warp.

    Raises:
        UserError: The file is missing, damaged, of an unknown kind, or needs an image it has not.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: this file is missing.")
    try:
        return _any(path, fixed, moving)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"{path}: cannot be read as a transform ({reason}).") from error


def chain(transforms: Sequence[sitk.Transform]) -> sitk.CompositeTransform:
    """One transform of several, through which points go in the order given.

    Raises:
        UserError: Some are of 2D and others of 3D points, or there is none.
    """
    dimensions = {transform.GetDimension() for transform in transforms}
    if len(dimensions) != 1:
        raise UserError(f"Transforms of {sorted(dimensions)} dimensions do not make a chain.")
    composite = sitk.CompositeTransform([*reversed(transforms)])
    composite.FlattenTransform()
    return composite
