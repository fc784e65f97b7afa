"""ConvexAdam: registration without training, by discrete search and Adam.

Siebert, Hansen and Heinrich, "ConvexAdam: Self-Configuring Dual-Optimisation-Based 3D Multitask
Medical Image Registration", IEEE TMI 2024.  The discrete search is Heinrich, Papiez, Schnabel and
Handels, "Non-parametric Discrete Registration with Convex Optimisation", WBIR 2014.

Both parts compare MIND-SSC descriptors (Heinrich et al., MICCAI 2013), averaged over the cells of
a coarser grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.ops.cost_volume import cost_volume, iterate_offsets
from regnet_lab.ops.similarity import box_sum, mind_ssc


def downsample(image: Tensor, stride: int) -> Tensor:
    """Average an image over cells of ``stride`` voxels, at least two along every axis."""
    return ops.resize(image, [max(2, -(-n // stride)) for n in image.shape[2:]])


def smooth_twice(u: Tensor, window: int) -> Tensor:
    """Average over a window^D box, twice, replicating the border."""
    for _ in range(2):
        u = box_sum(u, window, "replicate") / window ** u.shape[1]
    return u


def compute_dissimilarity(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """Compute d_o(x) - t for every offset o of the cost volume, (B, (2 radius + 1)^D, *spatial).

    d_o(x) = mean_c (f_c(x) - m_c(x + o))^2 and t is the mean of d_0 over the grid, so that the
    value is 0, the average, beyond the moving image's border.  The square is expanded to an inner
    product of maps with two more channels, for :func:`regnet_lab.ops.cost_volume.cost_volume`.
    """
    f, m = (x.square().sum(1, keepdim=True) for x in (fixed, moving))
    baseline = (fixed - moving).square().sum(1, keepdim=True).flatten(1).mean(1)
    ones, baseline = torch.ones_like(f), baseline.view(-1, *[1] * (f.ndim - 1))
    cost = cost_volume(
        torch.cat([-2 * fixed, ones, f - baseline], 1), torch.cat([moving, m, ones], 1), radius
    )
    return cost * (1 + 2 / fixed.shape[1])


def solve_coupled_convex(
    cost: Tensor, radius: int, couplings: Sequence[float], window: int
) -> Tensor:
    """Find a smooth field u (B, D, *spatial) of low cost (WBIR 2014, equations 3 to 5).

    Minimises sum_x cost_v(x) + theta |v(x) - u(x)|^2 alternately over offsets v, by a search at
    every voxel, and over u, the smoothed v, with increasing theta.  ``cost`` is (B,
    (2 radius + 1)^D, *spatial); ``couplings`` are the values of theta, cost per squared voxel; the
    first search has none.
    """
    ndim = cost.ndim - 2
    steps = cost.new_tensor(list(iterate_offsets(ndim, radius)))  # (K, D)
    quadratic = torch.cat([-2 * steps, steps.square().sum(1, keepdim=True)], 1)
    flat, u = cost.flatten(2), torch.zeros_like(cost[:, :ndim])
    for theta in (0.0, *couplings):
        augmented = torch.cat([u, torch.ones_like(u[:, :1])], 1).flatten(2)  # (B, D + 1, voxels)
        coupled = torch.baddbmm(flat, quadratic.expand(len(u), -1, -1), augmented, alpha=theta)
        u = smooth_twice(steps[coupled.argmin(1)].transpose(1, 2).reshape(u.shape), window)
    return u


def make_inverse_consistent(forward: Tensor, backward: Tensor, iterations: int = 15) -> Tensor:
    """Return the forward field after making two fields more inverse-consistent.

    Iterates u <- (u - v(x + u)) / 2 for both fields at once.
    """
    for _ in range(iterations):
        forward, backward = (
            (forward - ops.warp(backward, forward)) / 2,
            (backward - ops.warp(forward, backward)) / 2,
        )
    return forward


class ConvexAdam(nn.Module):
    """Coupled convex search on a control grid, then Adam on the field; nothing is learned.

    Args:
        grid_spacing: Voxels per control point of the search.
        search_radius: Search radius in control points.
        coupling_weights: Weights that couple the search to a smooth field, one iteration each.
        smoothing_window: Control points over which the field is smoothed.
        adam_steps: Adam steps; 0: the search alone.
        adam_grid_spacing: Voxels per point of the field that Adam optimises.
        lr: Learning rate: points by which a step moves the field, about.
        smoothness_weight: Weight of the diffusion energy against the mean squared descriptor
            difference.
        mind_radius: Radius of the descriptors' patches, in voxels.
        mind_dilation: Distance of the compared patches, in voxels.

    Returns the field of the search and, with ``adam_steps``, the optimised one, each on its own
    grid.
    """

    def __init__(
        self,
        grid_spacing: int = 3,
        search_radius: int = 4,
        coupling_weights: Sequence[float] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        smoothing_window: int = 3,
        adam_steps: int = 80,
        adam_grid_spacing: int = 2,
        lr: float = 1.0,
        smoothness_weight: float = 0.05,
        mind_radius: int = 1,
        mind_dilation: int = 2,
    ) -> None:
        super().__init__()
        self.grid_spacing, self.search_radius = grid_spacing, search_radius
        self.coupling_weights, self.smoothing_window = list(coupling_weights), smoothing_window
        self.adam_steps, self.adam_grid_spacing = adam_steps, adam_grid_spacing
        self.lr, self.smoothness_weight = lr, smoothness_weight
        self.mind_radius, self.mind_dilation = mind_radius, mind_dilation

    @ops.full_precision
    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        with torch.no_grad():
            options = self.mind_radius, self.mind_dilation
            images = [mind_ssc(image, *options) for image in (fixed, moving)]
            u = self.search(*(downsample(image, self.grid_spacing) for image in images))
            fine = [downsample(image, self.adam_grid_spacing) for image in images]
        if not self.adam_steps:
            return [u]
        with torch.enable_grad():
            return [u, self.optimize_field(fine[0], fine[1], u)]

    def search(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Return the discrete result (B, D, *control grid) in its voxels, from both directions."""
        options = self.search_radius, self.coupling_weights, self.smoothing_window
        forward, backward = (
            solve_coupled_convex(compute_dissimilarity(*images, self.search_radius), *options)
            for images in ((fixed, moving), (moving, fixed))
        )
        return make_inverse_consistent(forward, backward)

    def optimize_field(self, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Minimise mean (f - m(x + u))^2 + smoothness |du|^2 by Adam from u, on the maps' grid."""
        u = ops.resize_field(u, fixed.shape[2:]).clone().requires_grad_()
        optimizer = torch.optim.Adam([u], self.lr)
        for _ in range(self.adam_steps):
            smooth_u = smooth_twice(u, 3)
            difference = (fixed - ops.warp(moving, smooth_u)).square().flatten(1).mean(1)
            slope = ops.forward_difference(smooth_u).square().sum((1, 2)).flatten(1).mean(1)
            energy = difference + self.smoothness_weight * slope
            optimizer.zero_grad()
            energy.sum().backward()  # a sum: cases do not mix
            optimizer.step()
        return smooth_twice(u, 3).detach()
