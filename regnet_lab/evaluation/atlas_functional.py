"""The mathematics of an atlas: a mean image in a mean shape, and labels by vote.

Each subject i is registered to the template, u_i on the template's grid in voxels, so that
subject(x + u_i(x)) lies at x.  After FAIM's atlas (Kuang and Schmah, arXiv 1811.09243), with the
mean shape of Guimond et al. (CVIU 2000).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regnet_lab import ops

LEAST = 1e-3  # weight of a voxel where the map folds


def weighted_mean(carried: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean of the images seen through their displacements, weighted by how they change volume.

    template = sum_i J_i w_i / sum_i J_i with w_i(x) = image_i(x + u_i(x)), J_i = det(I + du_i/dx)
    and, where a map folds, J_i = 0.001.

    Args:
        carried: image_i and u_i, (1, 1, *spatial) and (1, D, *spatial).

    Returns:
        (1, 1, *spatial).
    """
    total = weights = torch.zeros(())
    for image, u in carried:
        weight = ops.jacobian_determinant(u)[:, None].clamp(min=LEAST)
        total = total.to(u) + weight * ops.warp(image, u)
        weights = weights.to(u) + weight
    return total / weights


def recentred(fields: Sequence[Tensor]) -> list[Tensor]:
    """Displacements of a template in the subjects' mean shape.

    With the mean m of all u_i the counterparts of x lie on average at x + m(x), which is where the
    new template shows what the old one shows at x: u_i o exp(-m), the flow of -m standing for the
    inverse of id + m.  It is that for translations, close to it for a small m, which rounds lead
    to, and invertible where id + m is not: a network may fold all subjects at the same place.

    Args:
        fields: u_i, (1, D, *spatial) each.
    """
    back = ops.integrate(-torch.stack(list(fields)).mean(0))
    return [ops.compose(back, u) for u in fields]


def sharpness(image: Tensor, mask: Tensor, spacing: Tensor) -> float:
    """Mean magnitude of the gradient inside a mask, per millimetre.

    Args:
        image: (1, 1, *spatial).
        mask: (1, 1, *spatial) bool.
        spacing: (1, D) millimetres per voxel.
    """
    scale = spacing.to(image).view(1, 1, -1, *[1] * (image.ndim - 2))
    return float((ops.gradient(image) / scale).norm(dim=2)[mask].mean())


def one_hot(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Channel k is 1 where ``labels`` (1, 1, *spatial) are values[k]: (1, K, *spatial) int16."""
    wanted = torch.tensor(values, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
    return (labels == wanted).short()


def winners(ballot: Tensor, values: Sequence[int]) -> Tensor:
    """The value with most votes, the first of equals: (1, K, *spatial) to (1, 1, *spatial)."""
    return torch.tensor(values, device=ballot.device)[ballot.argmax(1, keepdim=True)]


def fused(ballot: Tensor, values: Sequence[int], v: Tensor) -> Tensor:
    """Labels of a subject by vote of the others.

    Args:
        ballot: (1, K, *spatial) votes on the template's grid, those of the subject left out.
        values: What the K channels stand for.
        v: (1, D, *spatial) from the subject to the template, voxels.

    Returns:
        (1, 1, *spatial) the value whose votes, interpolated linearly at x + v(x), are most.
    """
    best = ballot.new_full((1, 1, *v.shape[2:]), -1, dtype=torch.float32)
    chosen = torch.zeros_like(best, dtype=torch.int64)
    for channel, value in enumerate(values):
        found = ops.warp(ballot[:, channel, None].float(), v, padding="zeros")
        chosen = torch.where(found > best, value, chosen)
        best = torch.maximum(found, best)
    return chosen
