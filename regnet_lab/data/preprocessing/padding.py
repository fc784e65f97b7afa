"""What an image saw: not the padding that turning and resampling put round it.

A resampled image often ends in one value, which is no sight of anything: aligned, its edge is
taken for anatomy.  It is told from a background of one value, such as air or a stripped skull, by
its shape: padding leaves a box, however turned.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

POINTS = 50_000  # by which the shape is judged
UNLIKE = 0.1  # share of voxels in which a box may differ from what was seen
HALF = np.sqrt(3)  # side of a box of variance one


def inner(image: NDArray) -> NDArray[np.bool_]:
    """Everything but the voxels of the corners' commonest value that are joined to a corner."""
    corners = np.ix_(*[(0, n - 1) for n in image.shape])
    values, counts = np.unique(image[corners], return_counts=True)
    parts, _ = ndimage.label(image == values[counts.argmax()])
    joined = np.unique(parts[corners])
    return ~np.isin(parts, joined[joined > 0])


def box(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of the parallelepiped of the same moments as a region.

    Where points spread evenly over a parallelepiped their coordinates along its edges are
    independent, so that whitening and the rotation of least kurtosis, by the fixed point of
    independent component analysis (Hyvarinen, IEEE TNN 1999), turn it into a cube.
    """
    points = np.argwhere(inside)
    some = points[:: -(-len(points) // POINTS)].T.astype(np.float64)
    middle = some.mean(1, keepdims=True)
    values, vectors = np.linalg.eigh(np.cov(some))
    white = (vectors / np.sqrt(np.maximum(values, 1e-9))).T
    y = white @ (some - middle)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=white.shape))[0]
    for _ in range(100):
        left, _, right = np.linalg.svd((turn @ y) ** 3 @ y.T / y.shape[1] - 3 * turn)
        turn = left @ right
    to_cube = turn @ white
    within = np.ones(inside.shape, bool)
    for row in to_cube:
        along = -row @ middle[:, 0]
        for axis, (step, n) in enumerate(zip(row, inside.shape, strict=True)):
            along = along + step * np.arange(n).reshape(-1, *[1] * (inside.ndim - 1 - axis))
        within &= np.abs(along) <= HALF
    return within


def seen(image: NDArray) -> NDArray[np.bool_]:
    """The voxels of an image (*spatial) that are no padding: those of a box that a constant value
    surrounds, less its outermost ones, which were half outside; all where there is no such box,
    or one too thin to tell.
    """
    everything = np.ones(image.shape, bool)
    inside = inner(image)
    if inside.all() or inside.sum() < 2**image.ndim:
        return everything
    found = box(inside)
    core = ndimage.binary_erosion(found, border_value=True)
    is_box = (found ^ inside).sum() <= UNLIKE * inside.sum()
    return core if is_box and 2 * core.sum() > inside.sum() else everything


def continued(image: NDArray, known: NDArray[np.bool_]) -> NDArray:
    """An image whose other voxels have the value of the nearest known one."""
    if known.all():
        return image
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return image[tuple(nearest)]
