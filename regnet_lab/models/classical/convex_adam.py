"""ConvexAdam: registration without training, by a discrete search and a continuous descent.

Siebert, Hansen and Heinrich, "ConvexAdam: Self-Configuring Dual-Optimisation-Based 3D Multitask
Medical Image Registration", IEEE TMI 2024, whose first half is Heinrich, Papiez, Schnabel and
Handels, "Non-parametric Discrete Registration with Convex Optimisation", WBIR 2014.

Both halves compare MIND-SSC descriptors (Heinrich et al., MICCAI 2013), averaged over the cells of
a coarser grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.ops.cost_volume import cost_volume, offsets
from regnet_lab.ops.similarity import box_sum, mind_ssc


def coarse(image: Tensor, stride: int) -> Tensor:
    """The image's field of view on cells of ``stride`` voxels, at least two along every axis."""
    return ops.resize(image, [max(2, -(-n // stride)) for n in image.shape[2:]])


def smoothed(u: Tensor, window: int) -> Tensor:
    """Mean over a window^D box, twice, the outermost voxels continued."""
    for _ in range(2):
        u = box_sum(u, window, "replicate") / window ** u.shape[1]
    return u


def unlikeness(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """d_o(x) - t for every offset o of the cost volume, d_o(x) = mean_c (f_c(x) - m_c(x + o))^2
    and t the mean of d_0 over the grid; beyond the moving image's border it is 0, as on average.

    Expanded, the square is an inner product of maps with two channels more, which is what
    :func:`regnet_lab.ops.cost_volume.cost_volume` computes.

    Returns:
        (B, (2 radius + 1)^D, *spatial).
    """
    f, m = (x.square().sum(1, keepdim=True) for x in (fixed, moving))
    typical = (fixed - moving).square().sum(1, keepdim=True).flatten(1).mean(1)
    one, typical = torch.ones_like(f), typical.view(-1, *[1] * (f.ndim - 1))
    cost = cost_volume(
        torch.cat([-2 * fixed, one, f - typical], 1), torch.cat([moving, m, one], 1), radius
    )
    return cost * (1 + 2 / fixed.shape[1])


def coupled_convex(cost: Tensor, radius: int, couplings: Sequence[float], window: int) -> Tensor:
    """A smooth field u of low cost, by minimising sum_x cost_v(x) + theta |v(x) - u(x)|^2 in turn
    over offsets v, a search at every voxel, and over u, which follows v smoothly, theta rising
    (WBIR 2014, equations 3 to 5).

    Args:
        cost: (B, (2 radius + 1)^D, *spatial).
        radius: Of the offsets.
        couplings: Values of theta, cost per squared voxel; the first search has none.
        window: Of the mean by which u follows v.

    Returns:
        (B, D, *spatial) voxels.
    """
    ndim = cost.ndim - 2
    steps = cost.new_tensor(list(offsets(ndim, radius)))  # (K, D)
    quadratic = torch.cat([-2 * steps, steps.square().sum(1, keepdim=True)], 1)
    flat, u = cost.flatten(2), torch.zeros_like(cost[:, :ndim])
    for theta in (0.0, *couplings):
        known = torch.cat([u, torch.ones_like(u[:, :1])], 1).flatten(2)  # (B, D + 1, voxels)
        coupled = torch.baddbmm(flat, quadratic.expand(len(u), -1, -1), known, alpha=theta)
        u = smoothed(steps[coupled.argmin(1)].transpose(1, 2).reshape(u.shape), window)
    return u


def consistent(there: Tensor, back: Tensor, iterations: int = 15) -> Tensor:
    """The way there made more like the inverse of the way back, and conversely, step by step:
    u <- (u - v(x + u)) / 2.
    """
    for _ in range(iterations):
        there, back = (
            (there - ops.warp(back, there)) / 2,
            (back - ops.warp(there, back)) / 2,
        )
    return there


class ConvexAdam(nn.Module):
    """Coupled convex search on a control grid, then Adam on the field; nothing is learned.

    Args:
        stride: Voxels per control point of the search.
        radius: Control points it reaches along every axis.
        couplings: Weights that tie the search to a smooth field, one round each.
        window: Control points over which that field is averaged.
        steps: Of Adam; none: the search alone.
        fine: Voxels per point of the field that Adam moves.
        rate: Points by which a step moves it, about.
        smoothness: Weight of its diffusion, against the mean squared difference of descriptors.
        patch: Radius of the descriptors' patches, in voxels.
        dilation: Distance of the patches they compare, in voxels.

    Returns:
        The field of the search and, with ``steps``, the final one, each on its grid.
    """

    def __init__(
        self,
        stride: int = 3,
        radius: int = 4,
        couplings: Sequence[float] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        window: int = 3,
        steps: int = 80,
        fine: int = 2,
        rate: float = 1.0,
        smoothness: float = 0.05,
        patch: int = 1,
        dilation: int = 2,
    ) -> None:
        super().__init__()
        self.stride, self.radius, self.window = stride, radius, window
        self.couplings, self.steps, self.fine = list(couplings), steps, fine
        self.rate, self.smoothness = rate, smoothness
        self.patch, self.dilation = patch, dilation

    @ops.full_precision
    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        with torch.no_grad():
            images = [mind_ssc(image, self.patch, self.dilation) for image in (fixed, moving)]
            u = self.search(*(coarse(image, self.stride) for image in images))
            fine = [coarse(image, self.fine) for image in images]
        if not self.steps:
            return [u]
        with torch.enable_grad():
            return [u, self.descend(fine[0], fine[1], u)]

    def search(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """The discrete answer, (B, D, *control grid) in its voxels, from both ways."""
        there, back = (
            coupled_convex(unlikeness(*ways, self.radius), self.radius, self.couplings, self.window)
            for ways in ((fixed, moving), (moving, fixed))
        )
        return consistent(there, back)

    def descend(self, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Adam on mean (f - m(x + u))^2 + smoothness |du|^2 from ``u``, on the maps' grid."""
        u = ops.resize_field(u, fixed.shape[2:]).clone().requires_grad_()
        optimizer = torch.optim.Adam([u], self.rate)
        for _ in range(self.steps):
            smooth = smoothed(u, 3)
            apart = (fixed - ops.warp(moving, smooth)).square().flatten(1).mean(1)
            slope = ops.forward_difference(smooth).square().sum((1, 2)).flatten(1).mean(1)
            optimizer.zero_grad()
            (apart + self.smoothness * slope).sum().backward()  # a sum: cases do not mix
            optimizer.step()
        return smoothed(u, 3).detach()
