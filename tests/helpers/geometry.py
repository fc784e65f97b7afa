"""Rotated images and the affine matrices of their grids."""

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation


def rotation(*degrees):
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[a, b, a, b], [a, b, b, a]] = (
            np.cos(angle),
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
        )
        matrix = matrix @ turn
    return matrix


def affine_matrix(degrees, spacing, origin):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(*degrees) * spacing
    matrix[:3, 3] = origin
    return matrix


def rotate_with_padding(image, degrees, scale):
    """The image on a turned grid that holds all of it, 0 beyond; where it lies; the image with its
    border continued; and the matrix (D+1, D+1) from the new grid's voxels to the old one's.
    """
    ndim = image.ndim
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    if ndim == 2:
        turn = Rotation.from_euler("z", degrees[2], degrees=True).as_matrix()[:2, :2]
    matrix = turn @ np.diag(scale[:ndim])
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in image.shape])).reshape(ndim, -1)
    corners = np.linalg.inv(matrix) @ ends
    low, high = np.floor(corners.min(1)), np.ceil(corners.max(1))
    size = tuple((high - low + 1).astype(int))
    x = matrix @ (np.indices(size).reshape(ndim, -1) + low[:, None])
    last = np.reshape(image.shape, (-1, 1)) - 0.5
    inside = ((x >= -0.5) & (x <= last)).all(0).reshape(size)
    values = ndimage.map_coordinates(image, x, order=1, mode="nearest").reshape(size)
    whole = np.eye(ndim + 1)
    whole[:-1, :-1], whole[:-1, -1] = matrix, matrix @ low
    return np.where(inside, values, 0), inside, values, whole
