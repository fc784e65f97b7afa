"""Image pairs at lower resolutions for linear alignment, also of volumes of few slices."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch

from regnet_lab import ops
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import ImageGrid, vectors_from_image
from regnet_lab.spatial.whole_voxels import MIN_AXIS_VOXELS

MIN_LEVEL_VOXELS = 50_000  # of a resolution level, if the image has them


@dataclass(frozen=True)
class ImagePair:
    """Two float32 images and their masks at one resolution."""

    fixed: sitk.Image
    moving: sitk.Image
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None


def shrink(image: sitk.Image, factor: float) -> sitk.Image:
    """Average an image on a grid with voxels ``factor`` times its finest spacing.

    The factor is reduced where the grid would have too few voxels for a histogram, and along an
    axis that would have fewer than ``MIN_AXIS_VOXELS``.
    """
    grid = ImageGrid.from_sitk(image)
    spacing = np.array(image.GetSpacing())
    fewest = np.minimum(grid.shape, MIN_AXIS_VOXELS)

    def compute_shape(factor: float) -> np.ndarray:
        coarse = np.maximum(spacing, factor * spacing.min())
        return np.maximum(np.rint(grid.shape * spacing / coarse), fewest)

    while factor > 1 and compute_shape(factor).prod() < MIN_LEVEL_VOXELS:
        factor *= 0.9
    shape = compute_shape(factor)
    array = np.ascontiguousarray(vectors_from_image(image), np.float32)
    small = ops.resize(torch.from_numpy(array)[None, None], shape.astype(int).tolist())
    ratio = grid.shape / shape
    stretch = np.diag([*ratio, 1.0])
    stretch[:-1, -1] = (ratio - 1) / 2
    affine = grid.affine @ coordinates.embed_in_3d(stretch)
    return coordinates.array_to_sitk(small[0, 0].numpy(), affine)


def extend_thin_axes(image: sitk.Image, repeat: bool = True) -> sitk.Image:
    """Extend an image along axes of fewer than ``MIN_AXIS_VOXELS`` to that many.

    With ``repeat`` its outermost voxels are repeated, else the new ones are 0.
    """
    missing = [max(MIN_AXIS_VOXELS - n, 0) for n in image.GetSize()]
    if not any(missing):
        return image
    low, high = [n // 2 for n in missing], [n - n // 2 for n in missing]
    if repeat:
        return sitk.ZeroFluxNeumannPad(image, low, high)
    return sitk.ConstantPad(image, low, high, 0.0)


def shrink_pair(pair: ImagePair, factor: float) -> ImagePair:
    """Shrink images and masks; a voxel is in a mask if at least half of it is.

    The image gradients of ITK need ``MIN_AXIS_VOXELS`` along each axis: thinner images are repeated
    beyond their border, and the new voxels of the fixed image are not compared.
    """
    fixed, moving = (shrink(image, factor) for image in (pair.fixed, pair.moving))
    masks = [
        None if mask is None else sitk.Cast(shrink(mask, factor) >= 0.5, sitk.sitkUInt8)
        for mask in (pair.fixed_mask, pair.moving_mask)
    ]
    if min(fixed.GetSize()) < MIN_AXIS_VOXELS and masks[0] is None:
        masks[0] = sitk.Cast(fixed * 0 + 1, sitk.sitkUInt8)
    return ImagePair(
        extend_thin_axes(fixed),
        extend_thin_axes(moving),
        None if masks[0] is None else extend_thin_axes(masks[0], repeat=False),
        None if masks[1] is None else extend_thin_axes(masks[1]),
    )
