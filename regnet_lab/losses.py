"""Loss terms: each looks at a pair and its registration and returns one number for the batch.

The weight lives on the term; the configuration's key is its name in the log.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.pair import Pair, Registration, need, resized


class Loss(nn.Module):
    """One weighted term of the training objective."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        raise NotImplementedError


class Similarity(Loss):
    """Unlikeness of the fixed and the warped image, mean over the batch and over scales.

    Args:
        measure: A function of :mod:`regnet_lab.similarity`.
        scales: Factors by which both images are shrunk, by averaging; a window of a local measure
            then reaches as many times further, and so finds what lies far away.
        masked: Count only the voxels of the pair's ``fixed_mask``.
        weight: Factor of the term.
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
            images.append(need(pair, "fixed_mask", self))
        shapes = [[-(-n // scale) for n in out.warped.shape[2:]] for scale in self.scales]
        shrunk = [[ops.resize(image, shape) for image in images] for shape in shapes]
        return torch.stack([self.measure(*level).mean() for level in shrunk]).mean()


class Diffusion(Loss):
    """sum_ik mean_x |d_k u_i|^p with forward differences of the displacement in voxels.

    p = 2 is the squared Frobenius norm of the displacement's derivative, GraDIRN's and, up to the
    factor D^2, VoxelMorph's smoothness; p = 1 is the anisotropic total variation.
    """

    def __init__(self, power: int = 2, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.power = power

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        slopes = [u.diff(dim=axis) for axis in range(2, u.ndim)]
        return torch.stack([s.abs().pow(self.power).sum(1).mean() for s in slopes]).sum()


class Bending(Loss):
    """Bending energy mean_x sum_i sum_kl (d_k d_l u_i)^2, mixed terms twice (Rueckert et al.,
    IEEE TMI 1999), by compact second differences inside the grid, displacement in voxels.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        u = out.displacement.float()
        axes = range(2, u.ndim)
        pure = [u.diff(n=2, dim=k).square().sum(1).mean() for k in axes]
        mixed = [
            u.diff(dim=k).diff(dim=m).square().sum(1).mean() for k in axes for m in axes if k < m
        ]
        return torch.stack([*pure, *(2 * term for term in mixed)]).sum()


class Folding(Loss):
    """Depth of the folds, relu(-det(I + du/dx)) with forward differences (Kuang and Schmah, 2018).

    ``reduction``: ``sum`` over voxels and batch, as published, or ``mean``, which does not grow
    with the image.
    """

    def __init__(self, reduction: str = "mean", weight: float = 1.0) -> None:
        super().__init__(weight)
        self.reduction = {"sum": Tensor.sum, "mean": Tensor.mean}[reduction]

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        depth = ops.jacobian_determinant(out.displacement, "forward").neg().relu()
        return self.reduction(depth)


class EndpointError(Loss):
    """Mean distance |u - u_true| to the known displacement, voxels."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        error = out.displacement - need(pair, "displacement", self)
        return (error.square().sum(1) + 1e-12).sqrt().mean()


class HuberDisplacement(Loss):
    """Huber's function of every component of u - u_true, mean; ``delta`` in voxels (RegNet)."""

    def __init__(self, delta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.delta = delta

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        return F.huber_loss(out.displacement, need(pair, "displacement", self), delta=self.delta)


class SoftDice(Loss):
    """1 - mean of 2 sum(f w) / (sum f + sum w) over the structures of each fixed image.

    f is the structure's indicator in the fixed labels, w its indicator in the moving labels,
    warped linearly, so that a gradient exists.  Background is left out.
    """

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        fixed, moving = need(pair, "fixed_labels", self), need(pair, "moving_labels", self)
        structures = torch.unique(fixed)
        structures = structures[structures != 0].view(1, -1, *[1] * (fixed.ndim - 2))
        f = (fixed == structures).to(out.displacement.dtype)  # (B, K, *spatial)
        w = ops.warp((moving == structures).to(f.dtype), out.displacement, padding="zeros")
        overlap, size_f, size_w = (a.flatten(2).sum(2) for a in (f * w, f, w))
        dice = (2 * overlap + 1e-5) / (size_f + size_w + 1e-5)
        present = (size_f > 0).to(dice.dtype)
        return 1 - (dice * present).sum() / present.sum().clamp(min=1)


class LandmarkDistance(Loss):
    """Mean distance |x_f + u(x_f) - x_m| of corresponding landmarks, mm."""

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        fixed, moving = need(pair, "fixed_points", self), need(pair, "moving_points", self)
        error = fixed + ops.sample_at(out.displacement, fixed) - moving
        return ((error * pair["spacing"][:, None]).square().sum(-1) + 1e-12).sqrt().mean()


class PerLevel(Loss):
    """A term applied to every field the model returns, coarse to fine (deep supervision).

    At each level the pair is brought to the field's grid; everything is in that grid's voxels.

    Args:
        term: The loss applied at each level.
        weights: One for each field, coarse to fine.
        weight: Factor of the whole.
    """

    def __init__(self, term: Loss, weights: Sequence[float], weight: float = 1.0) -> None:
        super().__init__(weight)
        self.term, self.weights = term, list(weights)

    def forward(self, pair: Pair, out: Registration) -> Tensor:
        if len(self.weights) != len(out.fields):
            raise UserError(
                f"PerLevel has {len(self.weights)} weights but the model returns "
                f"{len(out.fields)} fields: give one weight for each, coarse to fine."
            )
        total = out.warped.new_zeros(())
        for w, u in zip(self.weights, out.fields, strict=True):
            level = resized(pair, u.shape[2:])
            total = total + w * self.term(level, Registration([u], ops.warp(level["moving"], u)))
        return total
