"""Detection of the padding that rotation and resampling have left around an image.

Padding of one value carries no anatomy, but its edge would be aligned as if it did.  It is
distinguished from a background of one value, such as air or a removed skull, by its shape: the
image inside padding is a parallelepiped.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MAX_POINTS = 50_000  # voxels from which the parallelepiped is estimated
MAX_MISMATCH = 0.1  # share of voxels in which it may differ from the image's region
UNIT_CUBE_HALF_SIDE = np.sqrt(3)  # half the side of a cube whose coordinates have variance one


def find_nonpadding(image: NDArray) -> NDArray[np.bool_]:
    """Find the voxels outside the components that touch a corner and have the corners' most
    frequent value.
    """
    corners = np.ix_(*[(0, n - 1) for n in image.shape])
    values, counts = np.unique(image[corners], return_counts=True)
    components, _ = ndimage.label(image == values[counts.argmax()])
    at_corners = np.unique(components[corners])
    return ~np.isin(components, at_corners[at_corners > 0])


def fit_parallelepiped(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fit the parallelepiped with the moments of a region and return its voxels.

    The coordinates of points spread evenly over a parallelepiped are independent along its edges.
    Whitening, followed by the rotation of least kurtosis from the fixed-point iteration of
    independent component analysis (Hyvarinen, IEEE TNN 1999), maps it to a cube.
    """
    points = np.argwhere(region)
    sample = points[:: -(-len(points) // MAX_POINTS)].T.astype(np.float64)
    mean = sample.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(sample))
    whitening = (vectors / np.sqrt(np.maximum(values, 1e-9))).T
    y = whitening @ (sample - mean)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=whitening.shape))[0]
    for _ in range(100):
        left, _, right = np.linalg.svd((rotation @ y) ** 3 @ y.T / y.shape[1] - 3 * rotation)
        rotation = left @ right
    inside = np.ones(region.shape, bool)
    axes = np.ogrid[tuple(map(slice, region.shape))]
    for row in rotation @ whitening:
        steps = (step * axis for step, axis in zip(row, axes, strict=True))
        inside &= np.abs(sum(steps, start=-row @ mean[:, 0])) <= UNIT_CUBE_HALF_SIDE
    return inside


def find_valid_region(image: NDArray) -> NDArray[np.bool_]:
    """Find the voxels of an image (*spatial) that are not padding.

    These are the voxels of a parallelepiped surrounded by a constant value, without its outermost
    layer, which was interpolated with the padding; all voxels if there is no such
    parallelepiped or it is too thin.
    """
    everything = np.ones(image.shape, bool)
    region = find_nonpadding(image)
    if region.all() or region.sum() < 2**image.ndim:
        return everything
    fitted = fit_parallelepiped(region)
    core = ndimage.binary_erosion(fitted, border_value=True)
    fits = (fitted ^ region).sum() <= MAX_MISMATCH * region.sum()
    return core if fits and 2 * core.sum() > region.sum() else everything


def extend_valid_region(image: NDArray, valid: NDArray[np.bool_]) -> NDArray:
    """Replace all other voxels of an image by the value of the nearest valid one."""
    if valid.all():
        return image
    nearest = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return image[tuple(nearest)]
