"""Linear maps that take voxels to voxels, for images that are the same up to such a map.

The maximization of a similarity ends near such a map, not at it, because interpolation changes
every sample.  Where one of these maps makes both images equal it is preferred.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid, vectors_from_image

MIN_CORRELATION = 0.99  # squared, at which two images count as the same
EXACT_CORRELATION = 1 - 1e-6  # squared, from which all values are equal up to scale and offset
MIN_OVERLAP = 0.25  # of the fixed voxels compared
MIN_AXIS_VOXELS = 4  # below which scale and shear along an axis are not measured
MAX_DEVIATION = 0.1  # of the linear part from a permutation of the axes with signs
MAX_VOXELS = 3_000_000  # of an image that is transformed by Fourier
SAMPLES = 50_000  # voxels compared


def round_to_voxels(matrix: coordinates.Matrix, center: NDArray) -> coordinates.Matrix | None:
    """Round a voxel-to-voxel matrix (D+1, D+1) to one that maps voxels to voxels.

    It agrees with ``matrix`` at ``center`` to half a voxel.  None: the axes are not parallel, or
    the voxels differ in size.
    """
    linear = np.rint(matrix[:-1, :-1])
    if not np.array_equal(linear @ linear.T, np.eye(len(linear))):
        return None
    if np.abs(matrix[:-1, :-1] - linear).max() > MAX_DEVIATION:
        return None
    rounded = np.eye(len(matrix))
    rounded[:-1, :-1] = linear
    mapped = coordinates.apply_affine(matrix, center[None])[0]
    rounded[:-1, -1] = np.rint(mapped - linear @ center)
    return rounded


class SampledPair:
    """Voxels of the fixed image, those of its mask if it has one, and the whole moving image."""

    def __init__(
        self,
        fixed: sitk.Image,
        moving: sitk.Image,
        mask: sitk.Image | None = None,
        samples: int = SAMPLES,
    ) -> None:
        self.grids = ImageGrid.from_sitk(fixed), ImageGrid.from_sitk(moving)
        self.fixed, self.moving = vectors_from_image(fixed), vectors_from_image(moving)
        array = self.fixed
        inside = np.arange(array.size)
        if mask is not None:
            inside = np.flatnonzero(vectors_from_image(mask) > 0)
        if len(inside) > samples:
            inside = np.random.default_rng(0).choice(inside, samples, replace=False)
        self.points = np.column_stack(np.unravel_index(inside, array.shape)).astype(np.float64)
        self.values = array[tuple(self.points.T.astype(int))].astype(np.float64)

    def convert_to_voxels(self, matrix: coordinates.Matrix) -> coordinates.Matrix:
        """Convert a world-to-world matrix (4, 4) to the one (D+1, D+1) between voxels."""
        fixed, moving = self.grids
        affine = np.linalg.inv(matrix) @ moving.affine
        return coordinates.voxel_to_voxel_matrix(fixed.affine, affine, fixed.ndim)

    def convert_to_world(self, voxel_matrix: coordinates.Matrix) -> coordinates.Matrix:
        """Convert a matrix (D+1, D+1) between voxels to the one (4, 4) between worlds."""
        fixed, moving = self.grids
        return moving.affine @ coordinates.embed_in_3d(voxel_matrix) @ np.linalg.inv(fixed.affine)

    def measure_correlation(self, voxel_matrix: coordinates.Matrix) -> float:
        """Compute the squared correlation of both images where they overlap, 0 if hardly."""
        points = coordinates.apply_affine(voxel_matrix, self.points).round(6)  # edges are inside
        warped = ndimage.map_coordinates(
            self.moving, points.T, np.float64, order=1, mode="constant", cval=np.nan
        )
        inside = np.isfinite(warped)
        if inside.sum() < max(MIN_OVERLAP * len(inside), 2):
            return 0.0
        a, b = self.values[inside], warped[inside]
        a, b = a - a.mean(), b - b.mean()
        variances = (a @ a) * (b @ b)
        return float((a @ b) ** 2 / variances) if variances > 0 else 0.0


def iterate_rounded(
    pair: SampledPair, matrices: Iterable[coordinates.Matrix]
) -> Iterator[coordinates.Matrix]:
    """Yield the different whole-voxel maps near world-to-world matrices, as voxel matrices."""
    weights = pair.values - pair.values.min()
    total = weights.sum()
    middle = (np.array(pair.grids[0].shape) - 1) / 2
    mass = weights @ pair.points / total if total > 0 else middle
    known: set[bytes] = set()
    for matrix in matrices:
        for center in (middle, mass):
            rounded = round_to_voxels(pair.convert_to_voxels(matrix), center)
            if rounded is not None and rounded.tobytes() not in known:
                known.add(rounded.tobytes())
                yield rounded


def match_exactly(
    fixed: sitk.Image, moving: sitk.Image, matrix: coordinates.Matrix
) -> coordinates.Matrix | None:
    """Find the whole-voxel map near ``matrix`` that makes both images equal where they overlap.

    Their values may differ by a scale and an offset.  ``matrix`` and the result (4, 4) map world to
    world; None: there is no such map.
    """
    sampled = SampledPair(fixed, moving)
    for rounded in iterate_rounded(sampled, [matrix]):
        if sampled.measure_correlation(rounded) > EXACT_CORRELATION:
            complete = SampledPair(fixed, moving, samples=sampled.fixed.size)
            if complete.measure_correlation(rounded) > EXACT_CORRELATION:
                return sampled.convert_to_world(rounded)
    return None


def taper(image: NDArray) -> NDArray:
    """Let an image decrease to zero at its border by Hann windows, so that it has no edge there."""
    for axis, n in enumerate(image.shape):
        shape = [-1 if k == axis else 1 for k in range(image.ndim)]
        image = image * np.hanning(n + 2)[1:-1].reshape(shape)
    return image


def find_shift_by_phase(pair: SampledPair) -> coordinates.Matrix | None:
    """Find the whole-voxel shift between two images on parallel grids by phase correlation.

    Returns the voxel matrix (D+1, D+1), or None if the grids are not parallel or too large.  A
    shift of a whole image is found at any distance up to half of its size (Kuglin and Hines, 1975).
    """
    grids = pair.convert_to_voxels(np.eye(4))
    shape = tuple(np.maximum(pair.fixed.shape, pair.moving.shape).tolist())
    if np.abs(grids[:-1, :-1] - np.eye(len(shape))).max() > 1e-3 or math.prod(shape) > MAX_VOXELS:
        return None
    axes = tuple(range(len(shape)))
    fixed, moving = (
        np.fft.rfftn(taper(image - image.mean()), shape, axes)
        for image in (pair.fixed, pair.moving)
    )
    product = fixed.conj() * moving
    spectrum = product / np.maximum(np.abs(product), 1e-12 * np.abs(product).max() + 1e-30)
    peak = np.fft.irfftn(spectrum, shape, axes).argmax()
    shift = np.array(np.unravel_index(peak, shape))
    matrix = np.eye(len(shape) + 1)
    matrix[:-1, -1] = np.where(shift > np.array(shape) // 2, shift - shape, shift)
    return matrix


def keep_thin_axes(
    pair: SampledPair, matrix: coordinates.Matrix, start: coordinates.Matrix
) -> coordinates.Matrix:
    """Return ``matrix`` with shear and scale of ``start`` along the thin axes of the fixed image.

    Those have too few voxels to measure them.  Both matrices (4, 4) map world to world; the result
    agrees with ``matrix`` at the center of the fixed image.
    """
    thin = [axis for axis, n in enumerate(pair.grids[0].shape) if n < MIN_AXIS_VOXELS]
    if not thin:
        return matrix
    voxels, center = pair.convert_to_voxels(matrix), (np.array(pair.grids[0].shape) - 1) / 2
    change = pair.convert_to_voxels(start)[:-1, thin] - voxels[:-1, thin]
    voxels[:-1, thin] += change
    voxels[:-1, -1] -= change @ center[thin]
    return pair.convert_to_world(voxels)


def prefer_whole_voxels(
    pair: SampledPair, matrix: coordinates.Matrix, others: Iterable[coordinates.Matrix]
) -> coordinates.Matrix:
    """Return the whole-voxel map that makes both images the same, or ``matrix`` if none does.

    Those near ``matrix`` and ``others``, world-to-world matrices (4, 4), are tried, then the shift
    of largest phase correlation.  It must correlate the images better than ``matrix`` does.
    """
    reached = pair.measure_correlation(pair.convert_to_voxels(matrix))
    best, highest = None, max(MIN_CORRELATION, reached)
    for rounded in iterate_rounded(pair, [matrix, *others]):
        correlation = pair.measure_correlation(rounded)
        if correlation > highest:
            best, highest = rounded, correlation
    if highest == MIN_CORRELATION:  # none of them
        shift = find_shift_by_phase(pair)
        if shift is not None and pair.measure_correlation(shift) > highest:
            best = shift
    return matrix if best is None else pair.convert_to_world(best)
