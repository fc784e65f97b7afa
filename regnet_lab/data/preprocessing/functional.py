"""Resampling, label selection and intensity normalization of arrays.

A grid is placed by a matrix (D+1, D+1) that maps its voxels to voxels of the array it samples.
Images are interpolated linearly, labels and masks by nearest neighbour; landmarks go through the
inverse matrix, so that a landmark stays with its label.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import ops
from regnet_lab.data.preprocessing.intensity_range import compute_intensity_range
from regnet_lab.errors import UserError

Matrix = NDArray[np.floating]
LabelGroup = int | Sequence[int] | Mapping[str, Any]  # the last: {name: ..., labels: [...]}
LabelSelection = Sequence[int] | Mapping[int, LabelGroup] | None


def shift_array(
    array: NDArray, offset: Sequence[int], shape: Sequence[int], fill: float = 0
) -> NDArray:
    """Shift an array to a grid of ``shape``: voxel x moves to x + ``offset``, the rest is ``fill``.

    >>> shift_array(np.array([1, 2, 3]), (1,), (5,))
    array([0, 1, 2, 3, 0])
    """
    start = np.maximum(offset, 0)
    stop = np.maximum(np.minimum(np.add(array.shape, offset), shape), start)
    source = tuple(map(slice, start - offset, stop - offset))
    target = tuple(map(slice, start, stop))
    result = np.full(tuple(shape), fill, array.dtype)
    result[target] = array[source]
    return result


def shift_array_with_border(array: NDArray, offset: Sequence[int], shape: Sequence[int]) -> NDArray:
    """Shift an array as :func:`shift_array` does, with its outermost voxels continued outside.

    >>> shift_array_with_border(np.array([1, 2, 3]), (1,), (5,))
    array([1, 1, 2, 3, 3])
    """
    index = [
        np.clip(np.arange(new_n) - o, 0, n - 1)
        for o, n, new_n in zip(offset, array.shape, shape, strict=True)
    ]
    return array[np.ix_(*index)]


def crop_or_pad(array: NDArray, shape: Sequence[int]) -> NDArray:
    """Crop or pad an array with zeros about its centre to ``shape``."""
    return shift_array(array, compute_crop_or_pad_offset(array.shape, shape), shape)


def compute_crop_or_pad_offset(shape: Sequence[int], new_shape: Sequence[int]) -> tuple[int, ...]:
    """Compute the voxels by which :func:`crop_or_pad` shifts an array along each axis."""
    return tuple((new_n - n) // 2 for n, new_n in zip(shape, new_shape, strict=True))


def make_scaling_matrix(factor: NDArray, shift: NDArray) -> Matrix:
    """Return the homogeneous matrix (D+1, D+1) of x -> factor x + shift along every axis."""
    matrix = np.diag(np.append(factor, 1.0))
    matrix[:-1, -1] = shift
    return matrix


def compute_centered_grid(
    array_shape: Sequence[int], factor: NDArray[np.float64], shape: Sequence[int] | None = None
) -> tuple[tuple[int, ...], Matrix]:
    """Compute a grid about the centre of an array, with voxels ``factor`` times as large.

    Args:
        array_shape: Shape of the array.
        factor: (D,) size of a voxel of the grid in voxels of the array.
        shape: Shape of the grid, cropped or padded as by :func:`crop_or_pad`; None covers the
            array.

    Returns:
        The shape and the matrix from voxels of the grid to those of the array.
    """
    extent = np.asarray(array_shape, np.float64)
    size = np.maximum(np.rint(extent / factor), 1)
    covering = tuple(int(n) for n in size)
    final = covering if shape is None else tuple(shape)
    offset = np.array(compute_crop_or_pad_offset(covering, final), np.float64)
    return final, make_scaling_matrix(factor, (extent - 1) / 2 - factor * (offset + (size - 1) / 2))


def compute_stretch_matrix(array_shape: Sequence[int], shape: Sequence[int]) -> Matrix:
    """Compute the matrix from voxels of a grid of ``shape`` to those of an array with the same
    field of view.
    """
    factor = np.divide(array_shape, shape)
    return make_scaling_matrix(factor, (factor - 1) / 2)


def find_integer_shift(matrix: Matrix) -> tuple[int, ...] | None:
    """Return the offset of :func:`shift_array` if a matrix only shifts by whole voxels, or None."""
    linear, shift = matrix[:-1, :-1], matrix[:-1, -1]
    rounded = np.rint(shift)
    if np.abs(linear - np.eye(len(linear))).max() < 1e-6 and np.abs(shift - rounded).max() < 1e-4:
        return tuple(int(-s) for s in rounded)
    return None


def _compute_sampling_points(matrix: Matrix, shape: Sequence[int]) -> Tensor:
    """Compute where the voxels of a grid lie in the array, (1, D, *shape)."""
    single = torch.from_numpy(matrix).float()[None]
    return ops.affine_field(single, shape) + ops.identity_grid(shape, single)


def resample_image(
    image: NDArray, matrix: Matrix, shape: Sequence[int], padding_mode: str = "minimum"
) -> NDArray[np.float32]:
    """Resample an image to another grid by linear interpolation.

    Along an axis on which a new voxel covers f > 1 old ones, f being the norm of the matrix's row,
    the image is first averaged to n / f voxels over the same field of view
    (:func:`regnet_lab.ops.resize`), which prevents aliasing.  Shifts by whole voxels are exact.

    Args:
        image: (*spatial).
        matrix: (D+1, D+1) from voxels of the new grid to those of the image.
        shape: Shape of the new grid.
        padding_mode: Values outside the field of view: the image's ``minimum``, or its ``border``
            continued.
    """
    if padding_mode not in ("minimum", "border"):
        raise UserError(f"padding_mode={padding_mode} must be minimum or border.")
    image = np.require(image, np.float32, ["C", "W"])
    offset = find_integer_shift(matrix)
    if offset is not None:
        if padding_mode == "border":
            return shift_array_with_border(image, offset, shape)
        return shift_array(image, offset, shape, image.min())
    old_shape = np.array(image.shape)
    factor = np.maximum(np.linalg.norm(matrix[:-1, :-1], axis=1), 1)
    size = np.maximum(np.rint(old_shape / factor), 1).astype(int)
    fine = torch.from_numpy(image)[None, None]
    to_averaged = compute_stretch_matrix(size.tolist(), image.shape)
    points = _compute_sampling_points(to_averaged @ matrix, shape)
    inside = torch.ones(1, 1, *shape, dtype=torch.bool)
    for axis, n in enumerate(size):
        inside &= (points[:, axis] >= -0.5) & (points[:, axis] <= n - 0.5)
    values = ops.sample(ops.resize(fine, size.tolist()), points)
    keep = inside | (padding_mode == "border")
    return torch.where(keep, values, fine.min())[0, 0].numpy()


def resample_labels(labels: NDArray, matrix: Matrix, shape: Sequence[int]) -> NDArray:
    """Resample labels or a mask to another grid by nearest neighbour, 0 outside the field of view.

    Arguments are those of :func:`resample_image`.
    """
    offset = find_integer_shift(matrix)
    if offset is not None:
        return shift_array(labels, offset, shape)
    points = _compute_sampling_points(matrix, shape)
    single = torch.from_numpy(np.require(labels, None, ["C", "W"]))[None, None]
    return ops.sample_nearest(single, points, "zeros")[0, 0].numpy()


def list_group_labels(group: LabelGroup) -> list[int]:
    """Return the label values of a group.

    >>> list_group_labels({"name": "thalamus", "labels": [10, 49]})
    [10, 49]
    """
    labels = group["labels"] if isinstance(group, Mapping) else group
    return np.ravel(labels).tolist()


def select_labels(labels: NDArray, selection: LabelSelection) -> NDArray:
    """Keep some labels, or merge groups of labels; all others become background.

    Args:
        labels: Label map.
        selection: Values to keep, or groups ``{new: {name: ..., labels: [old, ...]}}``, where a
            list or a number may stand for the inner mapping; None keeps all labels.

    >>> groups = {1: {"name": "thalamus", "labels": [10, 49]}, 2: [17, 53]}
    >>> select_labels(np.array([0, 10, 49, 53, 2]), groups)
    array([0, 1, 1, 2, 0])
    """
    if selection is None:
        return labels
    groups: Mapping[int, LabelGroup] = (
        selection if isinstance(selection, Mapping) else {value: value for value in selection}
    )
    new_dtype = np.min_scalar_type(max(groups, default=0))
    result = np.zeros(labels.shape, np.promote_types(labels.dtype, new_dtype))
    for value, group in groups.items():
        result[np.isin(labels, list_group_labels(group))] = value
    return result


def rescale_to_unit_range(array: NDArray, low: float, high: float) -> NDArray[np.float32]:
    """Map ``low`` to 0 and ``high`` to 1, clipped beyond; zero where they coincide."""
    return np.clip((array - low) / max(high - low, 1e-12), 0, 1).astype(np.float32)


def normalize_percentiles(
    array: NDArray, low: float = 0.5, high: float = 99.5, like: NDArray | None = None
) -> NDArray[np.float32]:
    """Map the ``low`` and ``high`` percentiles of an image to 0 and 1, clipped beyond.

    Padding has no influence (:func:`compute_intensity_range` states the rule, also for label maps
    and binary images); a constant image becomes zero.  With ``like`` the percentiles are those of
    that image; its voxels that are not finite have no influence.
    """
    like = array if like is None else like
    return rescale_to_unit_range(array, *compute_intensity_range(like, low, high))


def normalize_min_max(array: NDArray, like: NDArray | None = None) -> NDArray[np.float32]:
    """Map the smallest and the largest finite value, of ``like`` if given, to 0 and 1."""
    like = array if like is None else like
    finite = like[np.isfinite(like)]
    return rescale_to_unit_range(array, float(finite.min()), float(finite.max()))


def normalize_window(
    array: NDArray, low: float, high: float, like: NDArray | None = None
) -> NDArray[np.float32]:
    """Map ``low`` and ``high``, such as Hounsfield units, to 0 and 1, clipped beyond.

    The window is the same for every image; ``like`` has no influence.

    >>> normalize_window(np.array([-1000.0, 0.0, 1000.0]), -1000, 1000)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    return rescale_to_unit_range(array, low, high)
