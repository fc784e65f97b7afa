"""Compute atlases: a mean image in a mean shape, and labels by majority vote.

Each subject i is registered to the template with a displacement u_i on the template's grid, in
voxels, so that x of the template corresponds to x + u_i(x) of the subject.  After FAIM's atlas
(Kuang and Schmah, arXiv 1811.09243), with the mean shape of Guimond et al. (CVIU 2000).
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regnet_lab import ops

MIN_WEIGHT = 1e-3  # weight of a voxel where the map folds


def compute_weighted_mean(images_and_fields: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the mean of warped images, weighted by how their maps change volume.

    template = sum_i J_i w_i / sum_i J_i with w_i(x) = image_i(x + u_i(x)), J_i = det(I + du_i/dx)
    and, where a map folds, J_i = 0.001.  Images and template are (1, 1, *spatial), u_i is
    (1, D, *spatial).
    """
    total = weights = torch.zeros(())
    for image, u in images_and_fields:
        weight = ops.jacobian_determinant(u)[:, None].clamp(min=MIN_WEIGHT)
        total = total.to(u) + weight * ops.warp(image, u)
        weights = weights.to(u) + weight
    return total / weights


def recenter_displacements(fields: Sequence[Tensor]) -> list[Tensor]:
    """Remove the mean displacement: compose fields with the inverse of their mean.

    With the mean m of all u_i the counterparts of x lie on average at x + m(x), where the new
    template shows what the old one shows at x.  The result is u_i o exp(-m): the exponential of
    -m approximates the inverse of id + m.  It is exact for translations, close for small m, to
    which the rounds converge, and invertible even where id + m folds.  Each u_i is
    (1, D, *spatial).

    >>> shifts = [torch.full((1, 2, 8, 8), value) for value in (1.0, 3.0)]
    >>> [u.mean().item() for u in recenter_displacements(shifts)]
    [-1.0, 1.0]
    """
    inverse_mean = ops.integrate(-torch.stack(list(fields)).mean(0))
    return [ops.compose(inverse_mean, u) for u in fields]


def compute_sharpness(image: Tensor, mask: Tensor, spacing: Tensor) -> float:
    """Compute the mean magnitude of the gradient inside a mask, per millimetre.

    Image and mask are (1, 1, *spatial), the spacing (1, D) millimetres per voxel.
    """
    scale = spacing.to(image).view(1, 1, -1, *[1] * (image.ndim - 2))
    return float((ops.gradient(image) / scale).norm(dim=2)[mask].mean())


def encode_one_hot(labels: Tensor, values: Sequence[int]) -> Tensor:
    """Encode labels (1, 1, *spatial) as (1, K, *spatial) int16; channel k is 1 at values[k]."""
    channels = torch.tensor(values, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
    return (labels == channels).short()


def select_majority_labels(votes: Tensor, values: Sequence[int]) -> Tensor:
    """Return the label with most votes (1, K, *spatial), the first of equals: (1, 1, *spatial)."""
    return torch.tensor(values, device=votes.device)[votes.argmax(1, keepdim=True)]


def fuse_labels(votes: Tensor, values: Sequence[int], v: Tensor) -> Tensor:
    """Label a subject with most votes of others, interpolated linearly at x + v(x).

    Args:
        votes: (1, K, *spatial) votes on the template's grid, without the subject's own.
        values: Labels of the K channels.
        v: (1, D, *spatial) displacement from the subject to the template, voxels.
    """
    max_votes = votes.new_full((1, 1, *v.shape[2:]), -1, dtype=torch.float32)
    labels = torch.zeros_like(max_votes, dtype=torch.int64)
    for channel, value in enumerate(values):
        warped = ops.warp(votes[:, channel, None].float(), v, padding="zeros")
        labels = torch.where(warped > max_votes, value, labels)
        max_votes = torch.maximum(warped, max_votes)
    return labels
