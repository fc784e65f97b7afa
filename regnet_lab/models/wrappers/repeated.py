"""A model used again and again on what it left over."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError


def spread(fixed: Tensor, warped: Tensor) -> Tensor:
    """Standard deviation of the residual image of every case, (B,)."""
    return (fixed - warped).float().flatten(1).std(1)


class Repeated(nn.Module):
    """Register, warp the moving image by the total displacement, register what is left, compose.

    With u the total so far and v the model's answer to (fixed, moving(x + u)), the new total is
    v(x) + u(x + v(x)); moving is always warped by the total, never by one field after another.  A
    case stops before the pass that would raise its ``measure`` (DIRV-Net's recurrent refinement);
    the first pass always counts.

    Args:
        model: Any model; its fields must share their grids from pass to pass.
        times: Most passes.
        measure: What must not rise, one number a case of (fixed, warped), as in
            :mod:`regnet_lab.similarity`; null: the spread of the residual.
        together: Stop all cases of a batch at once, by the mean of the measure.
    """

    def __init__(
        self,
        model: nn.Module,
        times: int = 15,
        measure: Callable[[Tensor, Tensor], Tensor] | None = None,
        together: bool = False,
    ) -> None:
        super().__init__()
        if times < 1:
            raise UserError(f"times={times}: Repeated needs at least one pass.")
        self.model, self.times, self.together = model, times, together
        self.measure = measure or spread

    def passes(self, fixed: Tensor, moving: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The composed fields after every pass, and the measure (B,) they lead to; never stops."""
        shape = fixed.shape[2:]
        total = fixed.new_zeros(len(fixed), len(shape), *shape)
        while True:
            answers = self.model(fixed, ops.warp(moving, total))
            fields = [ops.compose(v, ops.resize_field(total, v.shape[2:])) for v in answers]
            total = ops.resize_field(fields[-1], shape)
            yield fields, self.measure(fixed, ops.warp(moving, total)).detach()

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        """The fields of the last pass that counts, each composed with all before it."""
        passes = self.passes(fixed, moving)
        best, lowest = next(passes)
        running = torch.ones_like(lowest, dtype=torch.bool)
        for _, (fields, level) in zip(range(1, self.times), passes, strict=False):
            fell = level.mean() <= lowest.mean() if self.together else level <= lowest
            running &= fell
            if not running.any():
                break
            keep = running.view(-1, *[1] * (fixed.ndim - 1))
            best = [torch.where(keep, new, old) for new, old in zip(fields, best, strict=True)]
            lowest = torch.where(running, level, lowest)
        return best
