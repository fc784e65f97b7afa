"""Bringing images to the network's grid and range: small pure functions on arrays.

A grid is placed by a matrix (D+1, D+1) that takes its voxels to voxels of the array it samples.
Images are interpolated linearly, labels and masks take the voxel whose cell holds the point, and
points go through the inverse, so that a point and its label stay together.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab import ops
from regnet_lab.errors import UserError

Matrix = NDArray[np.floating]
Selection = Sequence[int] | Mapping[int, int | Sequence[int]] | None


def shifted(
    array: NDArray, offset: Sequence[int], shape: Sequence[int], outside: float = 0
) -> NDArray:
    """The array on a grid of ``shape``, voxel x landing on x + ``offset``."""
    source = tuple(
        slice(max(-o, 0), max(min(n, new - o), 0))
        for o, n, new in zip(offset, array.shape, shape, strict=True)
    )
    target = tuple(
        slice(max(o, 0), max(min(n + o, new), 0))
        for o, n, new in zip(offset, array.shape, shape, strict=True)
    )
    result = np.full(tuple(shape), outside, array.dtype)
    result[target] = array[source]
    return result


def pad_crop(array: NDArray, shape: Sequence[int]) -> NDArray:
    """Centre the array on a grid of ``shape``: zeros where it is short, cut where it is long.

    Voxel x lands on x + :func:`pad_crop_offset`.
    """
    return shifted(array, pad_crop_offset(array.shape, shape), shape)


def pad_crop_offset(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """Voxels by which :func:`pad_crop` moves an array along each axis."""
    return tuple((b - a) // 2 for a, b in zip(old, new, strict=True))


def scaling(factor: NDArray, shift: NDArray) -> Matrix:
    """The homogeneous matrix of x -> factor x + shift along every axis."""
    matrix = np.diag(np.append(factor, 1.0))
    matrix[:-1, -1] = shift
    return matrix


def centred_grid(
    old: Sequence[int], factor: NDArray[np.float64], shape: Sequence[int] | None = None
) -> tuple[tuple[int, ...], Matrix]:
    """A grid about the middle of an array, whose voxels are ``factor`` of the array's.

    It has as many voxels as cover the array, or ``shape``, as :func:`pad_crop` would then cut.

    Returns:
        Its shape and the matrix from its voxels to the array's.
    """
    extent = np.asarray(old, np.float64)
    size = np.maximum(np.rint(extent / factor), 1)
    covering = tuple(int(n) for n in size)
    final = covering if shape is None else tuple(shape)
    offset = np.array(pad_crop_offset(covering, final), np.float64)
    return final, scaling(factor, (extent - 1) / 2 - factor * (offset + (size - 1) / 2))


def stretched_grid(old: Sequence[int], shape: Sequence[int]) -> Matrix:
    """From voxels of a grid of ``shape`` to those of an array with the same field of view."""
    factor = np.divide(old, shape)
    return scaling(factor, (factor - 1) / 2)


def whole_shift(matrix: Matrix) -> tuple[int, ...] | None:
    """The offset of :func:`shifted` if the matrix moves by whole voxels and does nothing else."""
    linear, shift = matrix[:-1, :-1], matrix[:-1, -1]
    whole = np.rint(shift)
    if np.abs(linear - np.eye(len(linear))).max() < 1e-6 and np.abs(shift - whole).max() < 1e-4:
        return tuple(int(-s) for s in whole)
    return None


def _grid_points(matrix: Matrix, shape: Sequence[int]) -> Tensor:
    """(1, D, *shape) where the voxels of a grid lie."""
    single = torch.from_numpy(matrix).float()[None]
    return ops.affine_field(single, shape) + ops.identity_grid(shape, single)


def continued(array: NDArray, offset: Sequence[int], shape: Sequence[int]) -> NDArray:
    """As :func:`shifted`, the outermost voxels continued beyond the array."""
    index = [
        np.clip(np.arange(new) - o, 0, n - 1)
        for o, n, new in zip(offset, array.shape, shape, strict=True)
    ]
    return array[np.ix_(*index)]


def resample(
    image: NDArray, matrix: Matrix, shape: Sequence[int], outside: str = "minimum"
) -> NDArray[np.float32]:
    """An image on another grid, linear between voxels.

    Along an axis of which a new voxel covers f > 1 old ones, cells are first averaged over the
    same field of view to n / f of them (:func:`regnet_lab.ops.resize`), which prevents aliasing;
    f is the norm of the matrix's row.  Whole-voxel shifts are exact.

    Args:
        image: (*spatial).
        matrix: (D+1, D+1) from voxels of the new grid to those of the image.
        shape: Of the new grid.
        outside: What lies beyond the field of view: the image's ``minimum``, or its ``border``
            continued.

    Raises:
        UserError: ``outside`` is neither.
    """
    if outside not in ("minimum", "border"):
        raise UserError(f"outside={outside} must be minimum or border.")
    image = np.require(image, np.float32, ["C", "W"])
    offset = whole_shift(matrix)
    if offset is not None:
        if outside == "border":
            return continued(image, offset, shape)
        return shifted(image, offset, shape, image.min())
    old = np.array(image.shape)
    factor = np.maximum(np.linalg.norm(matrix[:-1, :-1], axis=1), 1)
    size = np.maximum(np.rint(old / factor), 1).astype(int)
    fine = torch.from_numpy(image)[None, None]
    points = _grid_points(stretched_grid(size.tolist(), image.shape) @ matrix, shape)
    inside = torch.ones(1, 1, *shape, dtype=torch.bool)
    for axis, n in enumerate(size):
        inside &= (points[:, axis] >= -0.5) & (points[:, axis] <= n - 0.5)
    values = ops.sample(ops.resize(fine, size.tolist()), points)
    known = inside | (outside == "border")
    return torch.where(known, values, fine.min())[0, 0].numpy()


def resample_nearest(labels: NDArray, matrix: Matrix, shape: Sequence[int]) -> NDArray:
    """Labels or a mask on another grid, 0 outside; arguments as in :func:`resample`."""
    offset = whole_shift(matrix)
    if offset is not None:
        return shifted(labels, offset, shape)
    points = _grid_points(matrix, shape)
    single = torch.from_numpy(np.require(labels, None, ["C", "W"]))[None, None]
    return ops.sample_nearest(single, points, "zeros")[0, 0].numpy()


def select_labels(labels: NDArray, wanted: Selection) -> NDArray:
    """Keep the values of a list, or give groups ``{new: [old, ...]}`` a new value each; the others
    become background.  ``None`` keeps all as they are.
    """
    if wanted is None:
        return labels
    groups = wanted if isinstance(wanted, Mapping) else {value: value for value in wanted}
    result = np.zeros_like(labels)
    for new, old in groups.items():
        result[np.isin(labels, old)] = new
    return result


def rescale(array: NDArray, bottom: float, top: float) -> NDArray[np.float32]:
    """Map ``bottom`` to 0 and ``top`` to 1, clipping beyond; zero where they coincide."""
    return np.clip((array - bottom) / max(top - bottom, 1e-12), 0, 1).astype(np.float32)


def percentile_range(
    array: NDArray, low: float = 0.5, high: float = 99.5, like: NDArray | None = None
) -> NDArray[np.float32]:
    """Map the ``low`` and ``high`` percentiles of the non-zero voxels to 0 and 1, clipping beyond.

    Copes with mixed scales and with zero padding; a constant image becomes zero.  The percentiles
    are those of ``like`` if it is given.
    """
    like = array if like is None else like
    inside = like[like != 0]
    if not inside.size:
        return np.zeros(array.shape, np.float32)
    return rescale(array, *np.percentile(inside, [low, high]))


def min_max(array: NDArray, like: NDArray | None = None) -> NDArray[np.float32]:
    """Map the smallest and the largest value, of ``like`` if it is given, to 0 and 1."""
    like = array if like is None else like
    return rescale(array, float(like.min()), float(like.max()))


def window(
    array: NDArray, low: float, high: float, like: NDArray | None = None
) -> NDArray[np.float32]:
    """Map ``low`` and ``high``, such as Hounsfield units, to 0 and 1, clipping beyond.

    The same for every image, so ``like`` changes nothing.
    """
    return rescale(array, low, high)
