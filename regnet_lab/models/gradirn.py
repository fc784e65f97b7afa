"""GraDIRN: unrolled gradient descent on an image energy, with a learned regulariser step.

Qiu, Hammernik, Qin, Chen, Rueckert: Embedding gradient-based optimization in image registration
networks, MICCAI 2022 (arXiv 2112.03915).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.models.layers import convolution, initialise_flow
from regnet_lab.similarity import mean_squares


class Regulariser(nn.Sequential):
    """The learned step: ``layers`` convolutions of width ``channels``, leaky rectifiers between."""

    def __init__(
        self, ndim: int, inputs: int, layers: int, channels: int, flow_deviation: float
    ) -> None:
        widths = [inputs, *[channels] * (layers - 1), ndim]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            layer = convolution(ndim, before, after)
            nn.init.kaiming_uniform_(layer.weight, a=0.2)
            modules += [layer, nn.LeakyReLU(0.2)]
        super().__init__(*modules[:-1])
        initialise_flow(layer, flow_deviation)


class Block(nn.Module):
    """One regulariser and one step size, shared by ``repeats`` iterations.

    u <- u - tau scale dE/du(u) - R(u, images), with E in units of a sum over voxels.
    """

    def __init__(self, regulariser: Regulariser, repeats: int, tau: float, learn_tau: bool) -> None:
        super().__init__()
        self.regulariser, self.repeats = regulariser, repeats
        self.tau = nn.Parameter(torch.tensor(tau), requires_grad=learn_tau)


class GraDIRN(nn.Module):
    """One field for every iteration, over levels from coarse to fine.

    Args:
        ndim: 2 or 3.
        blocks: Blocks at each level, coarse to fine; each has weights of its own.
        repeats: Iterations of each block of a level.
        energy: E(fixed, warped), one number a case as in :mod:`regnet_lab.similarity`.
        tau: Step size shared out over all iterations; ``learn_tau`` lets training change it.
        tau_scale: Factor on tau, which makes it learn faster.
        images: What the regulariser sees beside u: ``explicit`` the fixed and the warped image,
            ``implicit`` the fixed and the moving one, ``none`` nothing.
        layers: Convolutions of a regulariser.
        channels: Width of a regulariser.
        flow_deviation: Standard deviation of a regulariser's last weights at the start.  The
            published Kaiming initialisation starts at displacements of 58 voxels on 48 x 64 x 48.

    The energy's gradient is taken by autograd inside ``forward``, so the model also needs its
    graph at evaluation: run the trainer with ``inference_mode=False``.
    """

    def __init__(
        self,
        ndim: int,
        blocks: Sequence[int] = (1, 1, 1),
        repeats: Sequence[int] = (3, 3, 3),
        energy: Callable[[Tensor, Tensor], Tensor] = mean_squares,
        tau: float = 0.5,
        learn_tau: bool = True,
        tau_scale: float = 10.0,
        images: str = "explicit",
        layers: int = 5,
        channels: int = 32,
        flow_deviation: float = 1e-3,
    ) -> None:
        super().__init__()
        self.energy, self.tau_scale = energy, tau_scale
        self.seen = {
            "explicit": lambda u, fixed, moving, warped: [u, fixed, warped],
            "implicit": lambda u, fixed, moving, warped: [u, fixed, moving],
            "none": lambda u, fixed, moving, warped: [u],
        }[images]
        inputs = ndim if images == "none" else ndim + 2
        steps = sum(b * r for b, r in zip(blocks, repeats, strict=True))
        self.levels = nn.ModuleList(
            nn.ModuleList(
                Block(
                    Regulariser(ndim, inputs, layers, channels, flow_deviation),
                    r,
                    tau / (steps + 1),
                    learn_tau,
                )
                for _ in range(b)
            )
            for b, r in zip(blocks, repeats, strict=True)
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        coarse_to_fine = reversed(range(len(self.levels)))
        shapes = [[-(-n // 2**k) for n in fixed.shape[2:]] for k in coarse_to_fine]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *shapes[0])
        fields = []
        for level, shape in zip(self.levels, shapes, strict=True):
            f, m = ops.resize(fixed, shape), ops.resize(moving, shape)
            u = ops.resize_field(u, shape)
            for block in level:  # type: ignore[attr-defined]
                for _ in range(block.repeats):
                    u = self.iterate(block, f, m, u)
                    fields.append(u)
        return fields

    def iterate(self, block: Block, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Both steps, the data term's and the learned one, start from the old u."""
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            warped = ops.warp(moving, u)
            energy = self.energy(fixed, warped).sum() * fixed[0].numel()
            (slope,) = torch.autograd.grad(energy, u, create_graph=self.training, retain_graph=True)
        learned = block.regulariser(torch.cat(self.seen(u, fixed, moving, warped), 1))
        return u - block.tau * self.tau_scale * slope - learned.to(u.dtype)
