"""NIfTI files with every field of their geometry as given."""

import gzip

import nibabel
import numpy as np
import SimpleITK as sitk

SHAPE = (4, 5, 6)
UNITS = (0, 1, 2, 3)  # unknown, metre, millimetre, micrometre
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def write_nifti(
    path,
    array,
    sform,
    qform,
    sform_code=1,
    qform_code=1,
    unit=2,
    pixdim=None,
    dtype="<f4",
    intent=0,
):
    """Write an array; sform and qform (4, 4) are in the given unit.

    The voxel size is that of the qform unless ``pixdim``, three numbers, is given.
    """
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(array.shape)
    header.set_qform(qform, code=qform_code)
    header.set_sform(sform, code=sform_code)
    if pixdim is not None:
        header["pixdim"][1:4] = pixdim
    header["xyzt_units"] = unit + 8  # seconds
    header["intent_code"] = intent
    header["magic"], header["vox_offset"] = b"n+1", 352
    voxels = array.astype(dtype).tobytes(order="F")
    content = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def read_itk_affine(path):
    """Return the affine, RAS+, of a file as SimpleITK reads it."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine
