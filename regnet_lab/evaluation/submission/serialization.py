"""Arrays as the bytes of an ``.npz`` or a ``.nii.gz``, and back without trusting them."""

import gzip
import math
from collections.abc import Callable
from io import BytesIO
from zipfile import BadZipFile

import nibabel
import numpy as np
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from regnet_lab.data.io.images import UNREADABLE

DAMAGED = (*UNREADABLE, BadZipFile, KeyError, WrapStructError)  # raised for files that are


def npz_bytes(array: NDArray) -> bytes:
    """An ``.npz`` with this one array, under ``arr_0``."""
    file = BytesIO()
    np.savez_compressed(file, array)
    return file.getvalue()


def npz_array(content: bytes, room: int) -> NDArray:
    """The one array of an ``.npz``, without unpickling anything.

    Raises:
        ValueError: It holds no array, more than one, objects, or more than ``room`` bytes.
    """
    file = np.load(BytesIO(content), allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise ValueError("it is a single array, no .npz")
    with file:
        if len(file.files) != 1:
            raise ValueError(f"it must hold one array, not {len(file.files)}")
        if sum(member.file_size for member in file.zip.infolist()) > room:
            raise ValueError("its array is far too large")
        return file[file.files[0]]


def nifti_bytes(array: NDArray) -> bytes:
    """A ``.nii.gz`` with voxel coordinates for world coordinates."""
    return gzip.compress(nibabel.Nifti1Image(array, np.eye(4)).to_bytes(), 6, mtime=0)


def nifti_array(content: bytes, room: int) -> NDArray:
    """The array of a ``.nii.gz``.

    Raises:
        ValueError: It holds no numbers or more than ``room`` bytes.
    """
    with gzip.open(BytesIO(content)) as file:
        plain = file.read(room + 1)
    if len(plain) > room:
        raise ValueError("its array is far too large")
    image = nibabel.Nifti1Image.from_bytes(plain)
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError("it holds no plain numbers")
    if math.prod(image.shape) * image.get_data_dtype().itemsize > len(plain):
        raise ValueError("its header promises more than it holds")
    return np.asarray(image.dataobj)


FILES: dict[str, tuple[Callable[[NDArray], bytes], Callable[[bytes, int], NDArray]]] = {
    ".npz": (npz_bytes, npz_array),
    ".nii.gz": (nifti_bytes, nifti_array),
}
