"""Reading of transform files of ITK, ANTs, FSL and Learn2Reg as transforms in LPS+ mm."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.lib import format as npy

from regnet_lab.errors import UserError
from regnet_lab.spatial import fsl, learn2reg
from regnet_lab.spatial.header_checks import check_size, open_itk_reader
from regnet_lab.spatial.image_grid import ImageGrid, field_to_transform
from regnet_lab.utils.files import require_file

ITK_VECTOR_INTENT = 1007  # NIfTI intent code of displacement fields of ITK and ANTs
NIFTI_SUFFIXES = (".nii", ".nii.gz")
FIELD_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
NPY_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
MAX_TEXT_BYTES = 1e6
MAX_ARRAY_BYTES = 2**33
READ_ERRORS = (
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
    """Check whether a file is short and printable."""
    if path.stat().st_size > MAX_TEXT_BYTES:
        return False
    content = path.read_bytes()
    return b"\0" not in content and content.isascii()


def _read_itk_field(path: Path) -> sitk.Transform:
    """Read a displacement field in mm that SimpleITK reads as a vector image."""
    image = open_itk_reader(path).Execute()
    if image.GetNumberOfComponentsPerPixel() != image.GetDimension():
        raise UserError(f"{path}: is an image, not a displacement field; give a transform file.")
    return field_to_transform(image)


def _read_nifti(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None) -> sitk.Transform:
    """Read a NIfTI of ITK, ANTs, FSL or Learn2Reg, distinguished by header or name."""
    image = cast(nibabel.Nifti1Image, nibabel.load(path))
    code, shape = int(image.header["intent_code"]), image.shape
    check_size(path, shape, image.get_data_dtype().itemsize)
    if len(shape) == 5 and code == ITK_VECTOR_INTENT:
        return _read_itk_field(path)
    if code in fsl.WARP_INTENTS:
        return field_to_transform(fsl.read_warp(path, image, moving))
    if path.name.startswith(("disp_", "l2r_")) and len(shape) in (3, 4):
        u = np.asarray(image.dataobj, np.float64)
        return field_to_transform(learn2reg.displacement_to_field(path, u, fixed, moving))
    raise UserError(
        f"{path}: a NIfTI of {len(shape)} axes with intent code {code} is not a displacement field "
        "of a known program: ITK and ANTs write 5 axes with 1007, FSL 4 with 2006, and the names "
        "of Learn2Reg's begin with disp_."
    )


def check_npz_size(path: Path) -> None:
    """Raise UserError if an array of an ``.npz`` is larger than its stored data."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                shape, _, dtype = NPY_HEADER_READERS[npy.read_magic(file)](file)
            if math.prod(shape) * dtype.itemsize > min(member.file_size, MAX_ARRAY_BYTES):
                raise UserError(
                    f"{path}: its header promises an array of shape {shape}, which the file does "
                    "not hold; replace it."
                )


def _read_npz(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None) -> sitk.Transform:
    """Read a displacement of Learn2Reg."""
    check_npz_size(path)
    with np.load(path, allow_pickle=False) as arrays:
        if len(arrays.files) != 1:
            raise UserError(f"{path}: holds {len(arrays.files)} arrays; a displacement is one.")
        u = arrays[arrays.files[0]].astype(np.float64)
    return field_to_transform(learn2reg.displacement_to_field(path, u, fixed, moving))


def _read_by_name(path: Path, fixed: ImageGrid | None, moving: ImageGrid | None) -> sitk.Transform:
    """Read a transform in the format that the file name suggests."""
    name = path.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return _read_nifti(path, fixed, moving)
    if name.endswith(".npz"):
        return _read_npz(path, fixed, moving)
    if name.endswith(FIELD_SUFFIXES):
        return _read_itk_field(path)
    if name.endswith(".mat") and _is_text(path):
        return fsl.read_matrix(path, fixed, moving)
    return sitk.ReadTransform(str(path))


def read_transform(
    path: str | Path, fixed: ImageGrid | None = None, moving: ImageGrid | None = None
) -> sitk.Transform:
    """Read a transform from the world of the fixed image to that of the moving image.

    Formats: ITK ``.h5``, ``.tfm``, ``.txt`` and ``.mat`` (also ANTs' affine); displacement fields
    as 5D NIfTI with intent 1007, NRRD or MetaImage (ITK, ANTs); FSL's warp (4D NIfTI, intent 2006)
    and FLIRT's matrix; Learn2Reg's ``.npz``, and its ``.nii.gz`` if the name begins with ``disp_``.
    Learn2Reg's files and FLIRT's matrix need the grids of both images, FSL's warp the moving one.
    """
    path = Path(path)
    require_file(path)
    try:
        return _read_by_name(path, fixed, moving)
    except READ_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"{path}: cannot be read as a transform ({reason}).") from error


def compose_transforms(transforms: Sequence[sitk.Transform]) -> sitk.CompositeTransform:
    """Compose transforms; points go through them in the order given."""
    dimensions = {transform.GetDimension() for transform in transforms}
    if len(dimensions) != 1:
        raise UserError(f"Transforms of dimensions {sorted(dimensions)} cannot be composed.")
    composite = sitk.CompositeTransform([*reversed(transforms)])
    composite.FlattenTransform()
    return composite
