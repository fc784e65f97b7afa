"""Encode arrays as ``.npz`` or ``.nii.gz``, and decode untrusted files safely."""

import gzip
import math
from collections.abc import Callable
from io import BytesIO
from zipfile import BadZipFile

import nibabel
import numpy as np
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from regnet_lab.data.io.images import IMAGE_READ_ERRORS

READ_ERRORS = (*IMAGE_READ_ERRORS, BadZipFile, KeyError, WrapStructError)  # of damaged files


def encode_npz(array: NDArray) -> bytes:
    """Encode an array as ``.npz``, under ``arr_0``."""
    file = BytesIO()
    np.savez_compressed(file, array)
    return file.getvalue()


def decode_npz(content: bytes, max_bytes: int) -> NDArray:
    """Decode the only array of an ``.npz``, without unpickling.

    Raises:
        ValueError: It holds no array, more than one, objects, or more than ``max_bytes`` bytes.
    """
    file = np.load(BytesIO(content), allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise ValueError("it is a single array, no .npz")
    with file:
        if len(file.files) != 1:
            raise ValueError(f"it must hold one array, not {len(file.files)}")
        if sum(member.file_size for member in file.zip.infolist()) > max_bytes:
            raise ValueError("its array is far too large")
        return file[file.files[0]]


def encode_nifti(array: NDArray) -> bytes:
    """Encode an array as ``.nii.gz`` with an identity affine."""
    return gzip.compress(nibabel.Nifti1Image(array, np.eye(4)).to_bytes(), 6, mtime=0)


def decode_nifti(content: bytes, max_bytes: int) -> NDArray:
    """Decode the array of a ``.nii.gz``.

    Raises:
        ValueError: It holds no numbers or more than ``max_bytes`` bytes.
    """
    with gzip.open(BytesIO(content)) as file:
        unzipped = file.read(max_bytes + 1)
    if len(unzipped) > max_bytes:
        raise ValueError("its array is far too large")
    image = nibabel.Nifti1Image.from_bytes(unzipped)
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError("it holds no plain numbers")
    if math.prod(image.shape) * image.get_data_dtype().itemsize > len(unzipped):
        raise ValueError("its header promises more than it holds")
    return np.asarray(image.dataobj)


CODECS: dict[str, tuple[Callable[[NDArray], bytes], Callable[[bytes, int], NDArray]]] = {
    ".npz": (encode_npz, decode_npz),
    ".nii.gz": (encode_nifti, decode_nifti),
}
