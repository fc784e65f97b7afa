"""GraDIRN: unrolled gradient descent on an image energy, with a learned regulariser step.

Qiu, Hammernik, Qin, Chen, Rueckert: Embedding gradient-based optimization in image registration
networks, MICCAI 2022 (arXiv 2112.03915).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.layers import convolution, initialise_flow
from regnet_lab.ops.similarity import mean_squares

SEEN: dict[str, Callable[..., list[Tensor]]] = {
    "explicit": lambda u, fixed, moving, warped: [u, fixed, warped],
    "implicit": lambda u, fixed, moving, warped: [u, fixed, moving],
    "none": lambda u, fixed, moving, warped: [u],
}


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


class Still(nn.Module):
    """No learned step: what is left is gradient descent on the image energy."""

    def forward(self, seen: Tensor) -> Tensor:
        return seen.new_zeros(())


class Block(nn.Module):
    """One regulariser and one step size, shared by the iterations of a block.

    u <- u - tau scale dE/du(u) - R(u, images), with E in units of a sum over voxels.
    """

    def __init__(self, regulariser: nn.Module, tau: float, learn_tau: bool) -> None:
        super().__init__()
        self.regulariser = regulariser
        self.tau = nn.Parameter(torch.tensor(tau), requires_grad=learn_tau)


class GraDIRN(nn.Module):
    """One field for every iteration, over levels from coarse to fine.

    Args:
        ndim: 2 or 3.
        blocks: Blocks at each level, coarse to fine; each has weights of its own.
        repeats: Iterations of each block of a level.
        energy: E(fixed, warped), one number a case as in :mod:`regnet_lab.ops.similarity`.
        tau: Step size shared out over all iterations; ``learn_tau`` lets training change it.
        tau_scale: Factor on tau, which makes it learn faster.
        images: What the regulariser sees beside u: ``explicit`` the fixed and the warped image,
            ``implicit`` the fixed and the moving one, ``none`` nothing.
        layers: Convolutions of a regulariser; 0: no learned step.
        channels: Width of a regulariser.
        flow_deviation: Standard deviation of a regulariser's last weights at the start.  The
            published Kaiming initialisation starts at displacements of 58 voxels on 48 x 64 x 48.
        shared: The k-th blocks of all levels are one and the same.
        unroll: Factor on ``repeats`` outside training, and in it without ``draw``.
        draw: Fewest and most iterations of each block of a level in training, drawn uniformly
            for every level of every pass; null: always ``repeats``.
        halvings: Outside training, a step that does not lower the energy of a case is halved up
            to so many times and then left out; 0: every step is taken as it is.
        checkpointing: Keep only the fields between iterations in training, not what an iteration
            needs for its gradient, and compute that again on the way back.

    Raises:
        UserError: ``images`` or ``draw`` is none of these.

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
        shared: bool = False,
        unroll: float = 1.0,
        draw: Sequence[int] | None = None,
        halvings: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if images not in SEEN:
            raise UserError(f"images={images}: the regulariser sees one of {', '.join(SEEN)}.")
        if draw is not None and not (len(draw) == 2 and 1 <= draw[0] <= draw[1]):
            raise UserError(f"draw={list(draw)}: give the fewest and the most iterations, [1, 6].")
        self.energy, self.tau_scale, self.seen = energy, tau_scale, SEEN[images]
        self.repeats, self.unroll, self.draw = list(repeats), unroll, draw
        self.halvings, self.checkpointing = halvings, checkpointing
        steps = sum(b * r for b, r in zip(blocks, repeats, strict=True))
        inputs = ndim if images == "none" else ndim + 2

        def row(length: int) -> list[Block]:
            steps_taken = [
                Regulariser(ndim, inputs, layers, channels, flow_deviation) if layers else Still()
                for _ in range(length)
            ]
            return [Block(regulariser, tau / (steps + 1), learn_tau) for regulariser in steps_taken]

        common = row(max(blocks)) if shared else []
        self.levels = nn.ModuleList(nn.ModuleList(common[:b] if shared else row(b)) for b in blocks)
        self.passes: Tensor | None  # counted, so that a run that was resumed draws on
        self.register_buffer("passes", None if draw is None else torch.zeros((), dtype=torch.long))

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        coarse_to_fine = reversed(range(len(self.levels)))
        shapes = [[-(-n // 2**k) for n in fixed.shape[2:]] for k in coarse_to_fine]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *shapes[0])
        fields = []
        for level, repeats, shape in zip(self.levels, self.iterations(), shapes, strict=True):
            f, m = ops.resize(fixed, shape), ops.resize(moving, shape)
            u = ops.resize_field(u, shape)
            for block in level:  # type: ignore[attr-defined]
                for _ in range(repeats):
                    u = self.advance(block, f, m, u)
                    fields.append(u)
        return fields

    def iterations(self) -> list[int]:
        """How often each block of a level runs in this pass, coarse to fine."""
        if not self.training or self.draw is None or self.passes is None:
            return [max(1, round(r * self.unroll)) for r in self.repeats]
        generator = torch.Generator().manual_seed(int(self.passes))
        self.passes += 1
        fewest, most = self.draw
        return torch.randint(fewest, most + 1, (len(self.levels),), generator=generator).tolist()

    def advance(self, block: Block, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """An iteration, its intermediate values kept or not."""
        given = (block, fixed, moving, u)
        if self.training and self.checkpointing:
            return checkpoint(self.iterate, *given, use_reentrant=False, preserve_rng_state=False)
        return self.iterate(*given)

    def iterate(self, block: Block, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Both steps, the data term's and the learned one, start from the old u."""
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            warped = ops.warp(moving, u)
            energy = self.energy(fixed, warped).sum() * fixed[0].numel()
            (slope,) = torch.autograd.grad(energy, u, create_graph=self.training, retain_graph=True)
        learned = block.regulariser(torch.cat(self.seen(u, fixed, moving, warped), 1))
        step = block.tau * self.tau_scale * slope + learned.to(u.dtype)
        return u - (step if self.training else self.shortened(fixed, moving, u, step))

    def shortened(self, fixed: Tensor, moving: Tensor, u: Tensor, step: Tensor) -> Tensor:
        """The step of each case, halved until its energy falls, or zero; whole without halvings."""
        if not self.halvings:
            return step
        before = self.energy(fixed, ops.warp(moving, u))
        share = torch.ones_like(before)  # (B,)
        for left in range(self.halvings, -1, -1):
            tried = share.view(-1, *[1] * (u.ndim - 1)) * step
            rises = self.energy(fixed, ops.warp(moving, u - tried)) >= before
            share = torch.where(rises, share / 2 if left else 0 * share, share)
        return share.view(-1, *[1] * (u.ndim - 1)) * step
