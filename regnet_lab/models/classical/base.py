"""What the classical methods share: pairs one by one, and ITK's images of voxels.

The grid's voxels are given to ITK as its world: spacing 1, origin 0, axes in array order.  So its
displacements are ours, in voxels, component k along array axis k.
"""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regnet_lab.spatial import coordinates
from regnet_lab.spatial.image_grid import Frame

Array = NDArray[np.floating]
VOXELS = coordinates.RAS_TO_LPS  # the affine of a grid whose voxel indices are millimetres LPS+
FEWEST = 8  # voxels along an axis of the coarsest level


class Classical(nn.Module):
    """A method that optimises each pair on its own; it uses as many threads as PyTorch.

    Args:
        masked: Look only at what is brighter than the darkest voxel of each image, as the hard
            edges of padding mislead measures of intensity.
    """

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.masked = masked

    def register(self, fixed: Array, moving: Array) -> Array:
        """Displacement (D, *spatial) in voxels between two images (*spatial), float32."""
        raise NotImplementedError

    def masks(self, *images: Array) -> list[NDArray[np.uint8]] | None:
        """A mask for each image, unless one would be empty or none are wanted."""
        found = [(image > image.min()).astype(np.uint8) for image in images]
        return found if self.masked and all(mask.any() for mask in found) else None

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
        found = [self.register(a, b) for a, b in zip(arrays(fixed), arrays(moving), strict=True)]
        u = torch.from_numpy(np.stack(found).astype(np.float32))
        return [u.to(fixed.device)]


def arrays(images: Tensor) -> Array:
    """(B, *spatial) float32 of images (B, 1, *spatial) on any device."""
    return images.detach()[:, 0].float().cpu().numpy()


def image(array: NDArray) -> sitk.Image:
    """An array (*spatial) as ITK's image of its voxels."""
    return coordinates.to_image(array, VOXELS)


def frame(shape: Sequence[int]) -> Frame:
    """A grid whose world are its voxels."""
    return Frame(tuple(shape), VOXELS)


def levels(shape: Sequence[int], wanted: int) -> int:
    """How many levels, each half the one above, a grid has room for: ``wanted`` or fewer."""
    return max(1, min(wanted, int(np.log2(min(shape) / FEWEST) + 1)))
