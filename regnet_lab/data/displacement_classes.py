"""Classes of voxels by the magnitude of their displacement, and balanced draws from them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet_lab.types import Pair

CLASS_RULES = ("all", "any", "norm")


def classify_displacements(u: Tensor, thresholds: Sequence[float], rule: str) -> Tensor:
    """Classify every voxel by the magnitude of its displacement; -1 means no class.

    Class c lies between thresholds c - 1 (included; 0 for the first) and c (excluded).

    Args:
        u: (D, *spatial) millimetres.
        thresholds: Upper bound of each class in millimetres, increasing.
        rule: ``all``: the absolute values of all components lie within the bounds, as RegNet
            published for 3D, which excludes every voxel whose components differ much; ``any``, as
            for 2D: none exceeds the upper, one exceeds the lower bound; ``norm``: the length lies
            within the bounds, and the last class has no upper bound, so no voxel is excluded.

    Returns:
        (*spatial) int8.
    """
    bounds = torch.tensor(thresholds, dtype=u.dtype)
    if rule == "norm":
        length = u.square().sum(0).sqrt()
        return torch.bucketize(length, bounds[:-1], right=True).to(torch.int8)
    high = torch.bucketize(u.abs().amax(0), bounds, right=True)
    low = torch.bucketize(u.abs().amin(0), bounds, right=True) if rule == "all" else high
    return torch.where((low == high) & (high < len(bounds)), high, -1).to(torch.int8)


def expand_per_axis(number: int | Sequence[int], ndim: int) -> Sequence[int]:
    """Return one number for each axis."""
    return [number] * ndim if isinstance(number, int) else number


def find_class_voxels(
    pair: Pair, thresholds: Sequence[float], rule: str, border: int | Sequence[int]
) -> list[Tensor]:
    """Find the flat indices of the voxels of every class that lie at least ``border`` voxels from
    the faces of the image and inside the fixed mask, if there is one.
    """
    u = pair["displacement"]
    millimetres = u * pair["spacing"].view(-1, *[1] * (u.ndim - 1))
    classes = classify_displacements(millimetres, thresholds, rule)
    allowed = torch.zeros_like(classes, dtype=torch.bool)
    borders = expand_per_axis(border, classes.ndim)
    allowed[tuple(slice(b, n - b) for b, n in zip(borders, classes.shape, strict=True))] = True
    if "fixed_mask" in pair:
        allowed &= pair["fixed_mask"][0] > 0
    classes[~allowed] = -1
    flat = classes.flatten()
    return [torch.nonzero(flat == c)[:, 0].int() for c in range(len(thresholds))]


def draw_balanced_voxels(
    rng: np.random.Generator, counts: NDArray[np.int64], total: int
) -> NDArray[np.int64]:
    """Draw voxels with replacement, balanced over the classes, and shuffle them.

    The classes that have voxels are drawn equally often (their numbers differ by at most one), and
    the voxels of a class, over all images, with equal probability.

    Args:
        rng: Source of random numbers.
        counts: (images, classes) number of voxels.
        total: Number of draws.

    Returns:
        (total, 3) image, class and number of the voxel in that class and image.
    """
    nonempty = np.flatnonzero(counts.sum(0))
    share = np.full(len(nonempty), total // len(nonempty))
    share[: total % len(nonempty)] += 1
    draws = []
    for c, n in zip(nonempty, share, strict=True):
        last = counts[:, c].cumsum()
        number = rng.integers(0, last[-1], n)
        image = np.searchsorted(last, number, side="right")
        draws.append(np.stack([image, np.full(n, c), number - (last - counts[:, c])[image]], 1))
    return rng.permutation(np.concatenate(draws))
