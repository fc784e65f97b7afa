"""The image dissimilarity term."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.losses.base import Loss
from regnet_lab.types import Pair, Registration, require


class Similarity(Loss):
    """Dissimilarity of the fixed and the warped image, averaged over the batch and over scales.

    Args:
        measure: A function of :mod:`regnet_lab.ops.similarity`.
        scales: Factors by which both images are downsampled (averaged).  A coarser scale extends
            the range of a local measure and captures larger displacements.
        masked: Count only voxels in the pair's ``fixed_mask``.
    """

    def __init__(
        self,
        measure: Callable[..., Tensor],
        scales: Sequence[int] = (1,),
        masked: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        self.measure, self.scales, self.masked = measure, list(scales), masked

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        images = [pair["fixed"], out.warped]
        if self.masked:
            images.append(require(pair, "fixed_mask", self))
        shapes = [[-(-n // scale) for n in out.warped.shape[2:]] for scale in self.scales]
        levels = [[ops.resize(image, shape) for image in images] for shape in shapes]
        return torch.stack([self.measure(*level).mean() for level in levels]).mean()
