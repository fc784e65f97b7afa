"""Place a label map or mask on the voxel grid of its image through world coordinates.

Files of which one has no world coordinates (``.npy`` and pictures) are compared by shape alone.
A label map is resampled by nearest neighbour, which leaves its values as they are and is exact
where it holds the same voxels in another order.
"""

import logging
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.utils.logs import log_once

SUFFIXES_WITHOUT_WORLD = (".npy", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SAME_VOXEL = 0.5  # voxels; below it nearest neighbour takes the voxel of the same index
HEADER_ROUNDING = 0.01  # voxels of difference that are not worth a message
MIN_OVERLAP = 0.25  # share of the smaller field of view that labels and image must have in common
MAX_OBLIQUE = 1e-3  # voxels across which axes may run obliquely and count as parallel
HALF_VOXEL_TOLERANCE = 1e-6  # halves round up in spite of rounding errors

Matrix = NDArray[np.floating]
Shape = tuple[int, ...]

log = logging.getLogger(__name__)
log_info = partial(log_once, log, level=logging.INFO)
log_warning = partial(log_once, log)


def compute_corners(shape: Sequence[int], margin: float = 0.5) -> NDArray[np.float64]:
    """Return the (2^D, D) corners of a voxel grid, ``margin`` voxels outside the outermost centres.

    >>> compute_corners((3,)).ravel().tolist()
    [-0.5, 2.5]
    """
    return np.array(list(product(*((-margin, n - 1 + margin) for n in shape))))


def embed_shape(shape: Shape, ndim: int) -> Shape:
    """Return a shape with trailing axes of length one up to ``ndim`` axes."""
    return (*shape, *[1] * (ndim - len(shape)))


def compute_overlap(shape: Shape, label_shape: Shape, matrix: Matrix) -> float:
    """Compute the overlap of two fields of view, as a share of the smaller one.

    That of the image is replaced by its bounding box along the axes of the labels; ``matrix`` leads
    from voxels of the image to those of the labels.

    >>> compute_overlap((4, 6), (4, 6), np.array([[1, 0, 1.0], [0, 1, 0], [0, 0, 1]]))
    0.75
    """
    corners = coordinates.apply_affine(matrix, compute_corners(shape))
    high = np.minimum(corners.max(0), np.array(label_shape) - 0.5)
    shared = (high - corners.min(0).clip(-0.5)).clip(0).prod()
    size = abs(np.linalg.det(matrix)) * np.prod(shape)
    return float(min(shared / min(size, np.prod(label_shape)), 1))


def holds_same_voxels(shape: Shape, label_shape: Shape, matrix: Matrix) -> bool:
    """Check whether labels hold the voxels of an image along flipped or exchanged axes."""
    signs = np.rint(matrix[:-1, :-1])
    axes = np.abs(signs)
    exchanged = bool((axes.sum(0) == 1).all() and (axes.sum(1) == 1).all())
    if not exchanged or not np.array_equal(axes @ shape, label_shape):
        return False
    corners = compute_corners(shape, 0)
    first = np.where(signs.sum(1) < 0, np.array(label_shape) - 1, 0)
    distance = coordinates.apply_affine(matrix, corners) - (corners @ signs.T + first)
    return bool(np.abs(distance).max() < SAME_VOXEL)


def describe_grid(grid: ImageGrid) -> str:
    """Describe a grid for a message: shape, spacing and orientation."""
    shape = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{mm:.4g}" for mm in grid.spacing)
    orientation = "".join(nibabel.aff2axcodes(grid.affine)[: grid.ndim])
    return f"{shape} voxels of {spacing} mm, axes {orientation}"


def match_grids(
    path: Path,
    labels: ImageGrid,
    image_path: Path,
    image: ImageGrid,
    trust_array_order: bool = False,
) -> Matrix | None:
    """Decide how a label map is brought to the grid of its image, and log it.

    1. Grids whose voxels of equal index lie within half a voxel of each other are the same.
    2. The same voxels along flipped or exchanged axes are put in the order of the image.
    3. Any other file with as many voxels along each axis, in any order, is refused: its header or
       its array is wrong, and which of the two cannot be known.  With ``trust_array_order`` files
       of the same shape are taken in array order instead, whatever their headers say.
    4. A file that shares at least ``MIN_OVERLAP`` of the smaller field of view is resampled;
       others are refused.

    Returns:
        The matrix from voxels of the image to those of the labels, (D+1, D+1) with the larger D of
        the two; None: array order.
    """
    same_shape = labels.shape == image.shape
    if {path.suffix.lower(), image_path.suffix.lower()} & {*SUFFIXES_WITHOUT_WORLD}:
        if not same_shape:
            raise UserError(
                f"{path}: its shape {labels.shape} differs from {image.shape} of its image "
                f"{image_path}, and without world coordinates it cannot be resampled."
            )
        return None
    ndim = max(labels.ndim, image.ndim)
    _mention_other_plane(path, labels, image_path, image)
    matrix = coordinates.voxel_to_voxel_matrix(image.affine, labels.affine, ndim)
    shape, label_shape = (embed_shape(grid.shape, ndim) for grid in (image, labels))
    corners = compute_corners(shape, 0)
    distance = np.abs(coordinates.apply_affine(matrix, corners) - corners).max()
    if same_shape and (distance < SAME_VOXEL or trust_array_order):
        if distance > HEADER_ROUNDING:
            log_warning(
                f"{path}: taken in array order, although its header places it up to "
                f"{distance:.3g} voxels away from its image {image_path}."
            )
        return None
    if holds_same_voxels(shape, label_shape, matrix):
        log_info(
            f"{path}: axes brought to the order and direction of {image_path} (from "
            f"{describe_grid(labels)} to {describe_grid(image)})."
        )
        return matrix
    _check_position(path, labels, image_path, image, matrix, distance)
    log_info(
        f"{path}: resampled to the grid of {image_path} by nearest neighbour in world coordinates "
        f"(from {describe_grid(labels)} to {describe_grid(image)})."
    )
    return matrix


def _mention_other_plane(path: Path, labels: ImageGrid, image_path: Path, image: ImageGrid) -> None:
    """Log that a 2D label map lies farther than half a slice from the plane of its image."""
    if not labels.ndim == image.ndim == 2:
        return
    corners = coordinates.voxel_to_world(image.affine, compute_corners(image.shape))
    slices = coordinates.world_to_voxel(labels.affine, corners)[:, 2]
    if (distance := np.abs(slices).max()) > 0.5:
        log_warning(
            f"{path}: its plane is up to {distance:.3g} slices away from that of its image "
            f"{image_path}, and is projected onto it."
        )


def _check_position(
    path: Path,
    labels: ImageGrid,
    image_path: Path,
    image: ImageGrid,
    matrix: Matrix,
    distance: float,
) -> None:
    """Raise a UserError for labels that cannot be placed on their image with certainty."""
    shape, label_shape = (embed_shape(grid.shape, len(matrix) - 1) for grid in (image, labels))
    if shape == label_shape:
        raise UserError(
            f"{path}: has the shape of its image {image_path}, but its header places it up to "
            f"{distance:.3g} voxels away from it; correct the header, or if both arrays have the "
            "same voxel order set trust_array_order=true (in training and evaluation "
            "++data.dataset.prepare.trust_array_order=true)."
        )
    if sorted(shape) == sorted(label_shape):
        raise UserError(
            f"{path}: its shape {labels.shape} is that of its image {image_path}, {image.shape}, "
            "with axes exchanged, but its header does not say so; correct the header or the order "
            "of its axes."
        )
    if (overlap := compute_overlap(shape, label_shape, matrix)) < MIN_OVERLAP:
        raise UserError(
            f"{path}: shares {100 * overlap:.0f} % of the smaller field of view with its image "
            f"{image_path} and has another shape ({labels.shape}, not {image.shape}); correct the "
            "header, or give the labels of this image."
        )


def resample_nearest(array: NDArray, matrix: Matrix, shape: Shape) -> NDArray:
    """Resample whole numbers below 2^53 to a grid of ``shape`` by nearest neighbour, 0 outside.

    ``matrix`` leads from voxels of that grid to those of the array; halves round up.
    """
    ndim = len(matrix) - 1
    array, grid_shape = array.reshape(embed_shape(array.shape, ndim)), embed_shape(shape, ndim)
    shifted = matrix.copy()
    shifted[:-1, -1] += HALF_VOXEL_TOLERANCE
    axes = np.abs(matrix[:-1, :-1]).argmax(1)  # of the grid, for every axis of the array
    oblique = matrix[:-1, :-1].copy()
    oblique[range(ndim), axes] = 0
    if len({*axes}) == ndim and (np.abs(oblique) @ grid_shape).max() < MAX_OBLIQUE:
        return _resample_along_axes(array, shifted, axes, grid_shape).reshape(shape)
    resampled = ndimage.affine_transform(
        array, shifted, output_shape=grid_shape, order=0, mode="grid-constant"
    )
    return resampled.reshape(shape)


def _resample_along_axes(
    array: NDArray, matrix: Matrix, axes: NDArray[np.integer], shape: Shape
) -> NDArray:
    """Resample to a grid whose axis ``axes[k]`` is parallel to axis k of the array."""
    index = []
    for axis, (grid_axis, n) in enumerate(zip(axes, array.shape, strict=True)):
        position = matrix[axis, grid_axis] * np.arange(shape[grid_axis]) + matrix[axis, -1]
        voxel = np.floor(position + 0.5).astype(int)
        index.append(np.where((voxel >= 0) & (voxel < n), voxel, n))  # n: outside
    padded = np.pad(
        array, [(0, int((i == n).any())) for i, n in zip(index, array.shape, strict=True)]
    )
    return padded[np.ix_(*index)].transpose(np.argsort(axes))
