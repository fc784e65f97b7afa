"""What the second version's generators look at: an image and where its body and lungs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from regnet_lab.data.synthesis.displacements.base import FieldGenerator, separable
from regnet_lab.data.synthesis.displacements.gaussian import blur_matrix
from regnet_lab.errors import UserError


@dataclass(frozen=True)
class Scene:
    """An image, axes towards the left, the back and the head, as ITK reads CT.

    Args:
        image: (*shape), density: 0 is air.
        spacing: Millimetres per voxel along each axis.
        body: (*shape) where anything may move.
        lung: (*shape); null: unknown.
    """

    image: Tensor
    spacing: Sequence[float]
    body: Tensor
    lung: Tensor | None = None

    @property
    def shape(self) -> Sequence[int]:
        return self.image.shape

    def need_lung(self, who: object) -> NDArray[np.bool_]:
        """The lung.

        Raises:
            UserError: It is unknown or empty.
        """
        if self.lung is None or not self.lung.any():
            raise UserError(
                f"{type(who).__name__} needs a mask of the lung: give images with masks or leave "
                "it out of 'methods'."
            )
        return self.lung.numpy()


class SceneGenerator(Protocol):
    """Draws a displacement (1, D, *shape) in voxels for a scene."""

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor: ...


class OfShape:
    """A generator that looks at the grid alone, such as those of the first version."""

    def __init__(self, fields: FieldGenerator) -> None:
        self.fields = fields

    def __call__(self, rng: np.random.Generator, scene: Scene) -> Tensor:
        return self.fields(rng, scene.shape, scene.spacing)


def body(image: Tensor, threshold: float) -> Tensor:
    """The largest thing brighter than ``threshold`` in (*shape), its holes filled slice by slice
    across the last axis, as the lungs are open at the neck; everything where nothing is.
    """
    labels, count = ndimage.label(image.numpy() > threshold)
    if not count:
        return torch.ones(image.shape, dtype=torch.bool)
    inside = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    for k in range(inside.shape[-1]) if inside.ndim == 3 else ():
        inside[..., k] = ndimage.binary_fill_holes(inside[..., k])
    return torch.from_numpy(inside if inside.ndim == 3 else ndimage.binary_fill_holes(inside))


def smoothed(u: Tensor, sigma: Sequence[float] | float, spacing: Sequence[float]) -> Tensor:
    """(C, *shape) after a Gaussian of ``sigma`` mm, one for all or one for each channel."""
    if isinstance(sigma, int | float):
        if sigma <= 0:
            return u
        return separable(
            u, [blur_matrix(n, sigma / mm) for n, mm in zip(u.shape[1:], spacing, strict=True)]
        )
    return torch.cat([smoothed(c[None], s, spacing) for c, s in zip(u, sigma, strict=True)])


def bounded(u: Tensor, largest: float) -> Tensor:
    """Shrunk, if need be, so that no component exceeds ``largest`` in absolute value."""
    return u * min(1.0, largest / max(float(u.abs().max()), 1e-12))


def in_voxels(u: Tensor, spacing: Sequence[float]) -> Tensor:
    """(D, *shape) in mm as (1, D, *shape) in voxels."""
    return (u / torch.tensor(spacing, dtype=u.dtype).view(-1, *[1] * (u.ndim - 1)))[None]
