"""Conversion of images in memory to arrays with an affine, and of results back to their type."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regnet_lab.data.io.images import Volume, decode_image, drop_trailing_axes, replace_nonfinite
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.nifti import choose_geometry

# a NIfTI or other image of nibabel, a SimpleITK image, an array, a tensor or a file
ImageSource = SpatialImage | sitk.Image | NDArray | Tensor | str | Path


def _remove_channel_axes(tensor: Tensor) -> Tensor:
    """Return a tensor (*spatial) of one (1, 1, *spatial), and others as they are."""
    has_channel_axes = tensor.ndim in (4, 5) and tensor.shape[:2] == (1, 1)
    return tensor[0, 0] if has_channel_axes else tensor


def _make_affine(ndim: int, spacing: ArrayLike | None, affine: ArrayLike | None) -> NDArray:
    """Return an affine (4, 4) for an array of ``ndim`` axes; without either, voxels are 1 mm."""
    if affine is None:
        size = np.asarray(1.0 if spacing is None else spacing, np.float64)
        if size.size not in (1, ndim) or not (np.isfinite(size) & (size > 0)).all():
            raise UserError(f"spacing={spacing!r} must be one positive number of mm, or {ndim}.")
        return np.diag([*np.broadcast_to(size.ravel(), ndim), *[1.0] * (4 - ndim)])
    if spacing is not None:
        raise UserError("Give either the spacing or the affine of an array, not both.")
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4) or not coordinates.is_invertible(matrix):
        raise UserError(
            "affine must be an invertible matrix (4, 4) from voxels to millimetres, RAS+."
        )
    return matrix


def _read_nibabel(image: SpatialImage) -> Volume:
    """Return the values and the affine of an image of nibabel; NIfTI as ITK places it."""
    affine: coordinates.Matrix = np.asarray(image.affine, np.float64)
    if isinstance(image, nibabel.Nifti1Pair):
        affine = choose_geometry(image.header)[1]
    return Volume(np.asarray(image.dataobj), affine)


def _read_volume(image: ImageSource) -> Volume:
    """Return the values and the affine of an image; those of arrays and tensors are of 1 mm."""
    if isinstance(image, str | Path):
        return decode_image(Path(image))
    if isinstance(image, sitk.Image):
        return Volume(sitk.GetArrayFromImage(image).T, coordinates.affine_from_sitk(image))
    if isinstance(image, SpatialImage):
        return _read_nibabel(image)
    if isinstance(image, Tensor):
        tensor = _remove_channel_axes(image.detach().cpu())
        image = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(image, np.ndarray):
        return Volume(image, np.eye(4))
    raise UserError(
        f"{type(image).__name__} is no image; give one of nibabel or SimpleITK, an array, a tensor "
        "or a file."
    )


def load_volume(
    image: ImageSource, spacing: ArrayLike | None = None, affine: ArrayLike | None = None
) -> Volume:
    """Return the values of an image, in their own dtype, and its affine.

    Args:
        image: An image of nibabel or SimpleITK, a file, or an array or tensor (*spatial); a tensor
            may also be (1, 1, *spatial).
        spacing: Millimetres per voxel of an array or tensor, one number or one per axis.
        affine: (4, 4) from voxels of an array or tensor to millimetres, RAS+.

    Raises:
        UserError: It is no image of 2 or 3 axes with one channel and finite values, or has its own
            geometry besides ``spacing`` or ``affine``.
    """
    volume = _read_volume(image)
    if volume.array.dtype.kind not in "biuf":
        raise UserError("An image must have one channel of real numbers.")
    array, num_replaced = volume.array, volume.num_replaced
    if not isinstance(image, str | Path):
        array, num_replaced = replace_nonfinite(Path("image"), drop_trailing_axes(array, 3))
    if array.ndim not in (2, 3):
        raise UserError("An image must be 2D or 3D with one channel.")
    volume = Volume(array, volume.affine, num_replaced)
    if isinstance(image, np.ndarray | Tensor):
        return replace(volume, affine=_make_affine(array.ndim, spacing, affine))
    if spacing is not None or affine is not None:
        raise UserError("spacing and affine are for arrays and tensors; other images have theirs.")
    return volume


def convert_to_type_of(
    source: ImageSource, array: NDArray, affine: coordinates.Matrix
) -> SpatialImage | sitk.Image | NDArray | Tensor:
    """Convert an array (*spatial) to the type of ``source``; of a file, to a SimpleITK image.

    A tensor is on the device of ``source`` and has its dtype and channel axes.
    """
    if isinstance(source, Tensor):
        result = torch.from_numpy(np.ascontiguousarray(array)).to(source.device, source.dtype)
        return result[None, None] if source.ndim > array.ndim else result
    if isinstance(source, np.ndarray):
        return array
    if isinstance(source, SpatialImage):
        image = coordinates.array_to_nifti(array, affine)
        return type(source).from_image(image) if isinstance(source, nibabel.Nifti1Pair) else image
    return coordinates.array_to_sitk(array, affine)
