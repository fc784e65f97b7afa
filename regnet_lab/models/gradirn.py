"""GraDIRN: unrolled gradient descent on an image energy with a learned regularisation step.

Qiu, Hammernik, Qin, Chen, Rueckert: Embedding gradient-based optimization in image registration
networks, MICCAI 2022 (arXiv 2112.03915).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.layers import init_flow_layer, make_convolution
from regnet_lab.ops.similarity import mean_squares

REGULARISER_INPUTS: dict[str, Callable[..., list[Tensor]]] = {
    "explicit": lambda u, fixed, moving, warped: [u, fixed, warped],
    "implicit": lambda u, fixed, moving, warped: [u, fixed, moving],
    "none": lambda u, fixed, moving, warped: [u],
}


class Regulariser(nn.Sequential):
    """The learned step: ``layers`` convolutions of ``channels`` channels with leaky ReLUs."""

    def __init__(
        self, ndim: int, inputs: int, layers: int, channels: int, flow_deviation: float
    ) -> None:
        widths = [inputs, *[channels] * (layers - 1), ndim]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            layer = make_convolution(ndim, before, after)
            nn.init.kaiming_uniform_(layer.weight, a=0.2)
            modules += [layer, nn.LeakyReLU(0.2)]
        super().__init__(*modules[:-1])
        init_flow_layer(layer, flow_deviation)


class NoRegulariser(nn.Module):
    """A zero step, which leaves gradient descent on the image energy alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(())


class Block(nn.Module):
    """One regulariser and one step size, shared by the iterations of a block.

    u <- u - tau scale dE/du(u) - R(u, images), with E as a sum over voxels.
    """

    def __init__(self, regulariser: nn.Module, tau: float, learn_tau: bool) -> None:
        super().__init__()
        self.regulariser = regulariser
        self.tau = nn.Parameter(torch.tensor(tau), requires_grad=learn_tau)


class GraDIRN(nn.Module):
    """Unrolled registration over levels, coarse to fine; returns one field for every iteration.

    Args:
        ndim: 2 or 3.
        blocks: Blocks at each level, coarse to fine; each has its own weights.
        iterations: Iterations of each block of a level.
        energy: E(fixed, warped), one number a case as in :mod:`regnet_lab.ops.similarity`.
        step_size: Total step size, divided by the number of iterations (plus one).
        step_size_scale: Factor on the step size, which makes it learn faster.
        regulariser_input: Input of the regulariser besides u: ``explicit`` the fixed and the warped
            image, ``implicit`` the fixed and the moving image, ``none`` no image.
        layers: Convolutions of a regulariser; 0: no learned step.
        flow_init_std: Standard deviation of the initial weights of a regulariser's last layer.
            The published Kaiming initialisation gives displacements of 58 voxels on 48 x 64 x 48.
        share_levels: Share the k-th block among all levels.
        eval_iteration_factor: Factor on ``iterations`` outside training, and in training without
            ``train_iterations``.
        train_iterations: Minimum and maximum iterations of each block in training, drawn uniformly
            for every level of every pass; null: always ``iterations``.
        line_search_steps: Outside training, halve a step that does not lower the energy of a case
            up to so many times, then skip it; 0: take every step unchanged.
        gradient_checkpointing: In training, store only the fields between iterations and recompute
            the rest in the backward pass.

    ``forward`` takes the energy's gradient by autograd, so evaluation needs a graph, too: run the
    trainer with ``inference_mode=False``.
    """

    def __init__(
        self,
        ndim: int,
        blocks: Sequence[int] = (1, 1, 1),
        iterations: Sequence[int] = (3, 3, 3),
        energy: Callable[[Tensor, Tensor], Tensor] = mean_squares,
        step_size: float = 0.5,
        learn_step_size: bool = True,
        step_size_scale: float = 10.0,
        regulariser_input: str = "explicit",
        layers: int = 5,
        channels: int = 32,
        flow_init_std: float = 1e-3,
        share_levels: bool = False,
        eval_iteration_factor: float = 1.0,
        train_iterations: Sequence[int] | None = None,
        line_search_steps: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if regulariser_input not in REGULARISER_INPUTS:
            raise UserError(
                f"regulariser_input={regulariser_input}: choose one of "
                f"{', '.join(REGULARISER_INPUTS)}."
            )
        if train_iterations is not None and not (
            len(train_iterations) == 2 and 1 <= train_iterations[0] <= train_iterations[1]
        ):
            raise UserError(
                f"train_iterations={list(train_iterations)}: give the minimum and the maximum, "
                "such as [1, 6]."
            )
        self.energy, self.step_size_scale = energy, step_size_scale
        self.select_inputs = REGULARISER_INPUTS[regulariser_input]
        self.iterations = list(iterations)
        self.eval_iteration_factor = eval_iteration_factor
        self.train_iterations = train_iterations
        self.line_search_steps = line_search_steps
        self.gradient_checkpointing = gradient_checkpointing
        steps = sum(b * r for b, r in zip(blocks, iterations, strict=True))
        inputs = ndim if regulariser_input == "none" else ndim + 2

        def make_regulariser() -> nn.Module:
            if not layers:
                return NoRegulariser()
            return Regulariser(ndim, inputs, layers, channels, flow_init_std)

        def make_blocks(count: int) -> list[Block]:
            tau = step_size / (steps + 1)
            return [Block(make_regulariser(), tau, learn_step_size) for _ in range(count)]

        common = make_blocks(max(blocks)) if share_levels else []
        self.levels = nn.ModuleList(
            nn.ModuleList(common[:count] if share_levels else make_blocks(count))
            for count in blocks
        )
        self.passes: Tensor | None  # saved, so that a resumed run continues the draws
        self.register_buffer(
            "passes", None if train_iterations is None else torch.zeros((), dtype=torch.long)
        )

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        coarse_to_fine = reversed(range(len(self.levels)))
        shapes = [[-(-n // 2**k) for n in fixed.shape[2:]] for k in coarse_to_fine]
        u = fixed.new_zeros(len(fixed), fixed.ndim - 2, *shapes[0])
        fields = []
        levels = zip(self.levels, self.choose_iterations(), shapes, strict=True)
        for level, repeats, shape in levels:
            f, m = ops.resize(fixed, shape), ops.resize(moving, shape)
            u = ops.resize_field(u, shape)
            for block in cast(Sequence[Block], level):
                for _ in range(repeats):
                    u = self.run_iteration(block, f, m, u)
                    fields.append(u)
        return fields

    def choose_iterations(self) -> list[int]:
        """Return the iterations of each block of a level for this pass, coarse to fine."""
        if not self.training or self.train_iterations is None or self.passes is None:
            return [max(1, round(r * self.eval_iteration_factor)) for r in self.iterations]
        generator = torch.Generator().manual_seed(int(self.passes))
        self.passes += 1
        low, high = self.train_iterations
        return torch.randint(low, high + 1, (len(self.levels),), generator=generator).tolist()

    @contextmanager
    def override_iterations(
        self, factor: float, line_search_steps: int | None = None
    ) -> Iterator[None]:
        """Run ``factor`` times the trained iterations within a ``with`` block.

        ``line_search_steps``: as in the constructor; None: unchanged.
        """
        original = self.eval_iteration_factor, self.line_search_steps
        self.eval_iteration_factor = factor
        if line_search_steps is not None:
            self.line_search_steps = line_search_steps
        try:
            yield
        finally:
            self.eval_iteration_factor, self.line_search_steps = original

    def run_iteration(self, block: Block, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Run an iteration, with gradient checkpointing where wanted."""
        run = self.descend
        if self.training and self.gradient_checkpointing:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        return run(block, fixed, moving, u)

    def descend(self, block: Block, fixed: Tensor, moving: Tensor, u: Tensor) -> Tensor:
        """Return u after a step of the data term and a learned step, both taken at u."""
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            warped = ops.warp(moving, u)
            energy = self.energy(fixed, warped).sum() * fixed[0].numel()
            (slope,) = torch.autograd.grad(energy, u, create_graph=self.training, retain_graph=True)
        learned = block.regulariser(torch.cat(self.select_inputs(u, fixed, moving, warped), 1))
        step = block.tau * self.step_size_scale * slope + learned.to(u.dtype)
        return u - (step if self.training else self.search_line(fixed, moving, u, step))

    def search_line(self, fixed: Tensor, moving: Tensor, u: Tensor, step: Tensor) -> Tensor:
        """Halve the step of each case until its energy falls; zero it if it never does."""
        if not self.line_search_steps:
            return step
        before = self.energy(fixed, ops.warp(moving, u))
        share = torch.ones_like(before)  # (B,)
        for remaining in range(self.line_search_steps, -1, -1):
            trial = share.view(-1, *[1] * (u.ndim - 1)) * step
            rises = self.energy(fixed, ops.warp(moving, u - trial)) >= before
            share = torch.where(rises, share / 2 if remaining else 0 * share, share)
        return share.view(-1, *[1] * (u.ndim - 1)) * step
