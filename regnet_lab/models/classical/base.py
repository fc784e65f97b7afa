"""Base class of classical methods.

ITK gets the grid's voxels as physical space: spacing 1, origin 0, axes in array order.  Its
displacements are then in voxels, component k along array axis k.
"""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet_lab.spatial import coordinates

Array = NDArray[np.floating]
Masks = list[NDArray[np.uint8]] | None
VOXEL_AFFINE = coordinates.RAS_TO_LPS  # affine of a grid whose voxel indices are LPS+ millimetres
MIN_LEVEL_SIZE = 8  # voxels along an axis of the coarsest level


class ClassicalMethod(nn.Module):
    """A method that optimises each pair on its own, with as many threads as PyTorch.

    Args:
        masked: Use only voxels brighter than the minimum of each image, as the hard edges of
            padding mislead intensity measures.
    """

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked

    def register(self, fixed: Array, moving: Array) -> Array:
        """Return the displacement (D, *spatial) in voxels of two images (*spatial), float32."""
        raise NotImplementedError

    def make_masks(self, *images: Array) -> Masks:
        """Return a mask of each image; None if one would be empty or masks are disabled."""
        masks = [(image > image.min()).astype(np.uint8) for image in images]
        return masks if self.masked and all(mask.any() for mask in masks) else None

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        images = (x.detach()[:, 0].float().cpu().numpy() for x in (fixed, moving))
        fields = [self.register(a, b) for a, b in zip(*images, strict=True)]
        return [torch.from_numpy(np.stack(fields).astype(np.float32)).to(fixed.device)]


def limit_levels(shape: Sequence[int], max_levels: int) -> int:
    """Return the number of pyramid levels a grid has room for, ``max_levels`` at most.

    Each level halves the grid; the coarsest has ``MIN_LEVEL_SIZE`` voxels an axis.

    >>> limit_levels((48, 64, 48), max_levels=5)
    3
    """
    return max(1, min(max_levels, int(np.log2(min(shape) / MIN_LEVEL_SIZE) + 1)))
