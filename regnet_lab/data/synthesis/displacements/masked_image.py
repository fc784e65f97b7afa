"""Images with body and lung masks, the input of RegNet's second-version generators."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import DisplacementGenerator, apply_separable
from regnet_lab.data.synthesis.displacements.gaussian import compute_blur_matrices
from regnet_lab.errors import UserError


@dataclass(frozen=True)
class MaskedImage:
    """An image with masks; axes point to the left, back and head, as ITK reads CT."""

    image: Tensor  # (*shape) density; air is 0
    spacing: Sequence[float]  # voxel size along each axis, mm
    body: Tensor  # (*shape) mask of the voxels that may move
    lung: Tensor | None = None  # (*shape) mask, or None if unknown

    @property
    def shape(self) -> Sequence[int]:
        return self.image.shape

    def require_lung(self, caller: object) -> NDArray[np.bool_]:
        """Return the lung mask, or raise a UserError if it is unknown or empty."""
        if self.lung is None or not self.lung.any():
            raise UserError(
                f"{type(caller).__name__} needs a lung mask: use images with masks or remove it "
                "from 'deformations'."
            )
        return self.lung.numpy()


class MaskedDisplacementGenerator(Protocol):
    """Samples a displacement (1, D, *shape) in voxels for a masked image."""

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor: ...


class MaskAgnosticDisplacement:
    """A generator that uses only the grid of the image, such as those of the first version."""

    def __init__(self, displacement: DisplacementGenerator) -> None:
        self.displacement = displacement

    def __call__(self, rng: Generator, masked_image: MaskedImage) -> Tensor:
        return self.displacement(rng, masked_image.shape, masked_image.spacing)


def segment_body(image: Tensor, threshold: float) -> Tensor:
    """Segment the largest component of (*shape) above ``threshold`` and fill its holes.

    Holes are filled slice by slice along the last axis, since the airways open at the neck. The
    mask covers the whole image if no voxel is above the threshold.
    """
    labels, count = ndimage.label(image.numpy() > threshold)
    if not count:
        return torch.ones(image.shape, dtype=torch.bool)
    inside = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    for k in range(inside.shape[-1]) if inside.ndim == 3 else ():
        inside[..., k] = ndimage.binary_fill_holes(inside[..., k])
    return torch.from_numpy(inside if inside.ndim == 3 else ndimage.binary_fill_holes(inside))


def smooth_field(u: Tensor, sigma: Sequence[float] | float, spacing: Sequence[float]) -> Tensor:
    """Smooth (C, *shape) by a Gaussian of ``sigma`` mm, one for all or one per channel."""
    if isinstance(sigma, int | float):
        if sigma <= 0:
            return u
        return apply_separable(u, compute_blur_matrices(u.shape[1:], sigma, spacing))
    return torch.cat([smooth_field(c[None], s, spacing) for c, s in zip(u, sigma, strict=True)])


def limit_magnitude(u: Tensor, largest: float) -> Tensor:
    """Scale a field down, if necessary, so that no component exceeds ``largest``."""
    return u * min(1.0, largest / max(float(u.abs().max()), 1e-12))


def to_voxels(u: Tensor, spacing: Sequence[float]) -> Tensor:
    """Convert (D, *shape) in mm to (1, D, *shape) in voxels."""
    return (u / torch.tensor(spacing, dtype=u.dtype).view(-1, *[1] * (u.ndim - 1)))[None]
