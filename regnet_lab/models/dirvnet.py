"""DIRV-Net: unrolled descent on a learned energy of the residual image and of the displacement.

After the public TensorFlow implementation of DIRV-Net; variational networks: Hammernik et al., MRM
2018; Kobler et al., GCPR 2017.  What differs from it: docs/dirvnet.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.field_of_experts import Activation, FieldOfExperts, PiecewiseLinear
from regnet_lab.ops.bspline import ControlGrid


class Level(nn.Module):
    """The units of one pyramid level.

    With control values c, u = A c their displacement and r = moving(x + u) - fixed the residual,
    unit t makes, ``beta`` being zero without momentum,

        c_(t+1) = c_t - |alpha_t| (A^T (D_t(r) grad moving(x + u)) + R_t(c_t))
                  + beta_t (c_t - c_(t-1))

    Args:
        data: D, fields of experts on the residual; each serves as many units as the next.
        regularisers: R, fields of experts on the control values.
        units: Number of units.
        steps: Range from which alpha is drawn at the start.
        momentum: beta at the start, or none.
    """

    def __init__(
        self,
        data: Sequence[FieldOfExperts],
        regularisers: Sequence[FieldOfExperts],
        units: int,
        steps: tuple[float, float],
        momentum: float | None,
    ) -> None:
        super().__init__()
        self.data, self.regularisers = nn.ModuleList(data), nn.ModuleList(regularisers)
        self.steps = nn.Parameter(torch.empty(units).uniform_(*steps))
        self.momentum = None
        if momentum is not None:
            self.momentum = nn.Parameter(torch.full([units], momentum))

    def forward(
        self, fixed: Tensor, moving: Tensor, control: Tensor, grid: ControlGrid
    ) -> tuple[list[Tensor], Tensor]:
        """Displacements u after every unit, and the last control values."""
        units, change, fields = len(self.steps), torch.zeros_like(control), []
        u = grid.dense(control)
        for t, alpha in enumerate(self.steps.abs()):
            expert = t * len(self.data) // units
            warped = ops.warp(moving, u)
            force = self.data[expert](warped - fixed) * ops.gradient(warped)[:, 0]
            slope = grid.adjoint(force) + self.regularisers[expert](control)
            beta = 0 if self.momentum is None else self.momentum[t]
            change = beta * change - alpha * slope
            control = control + change
            u = grid.dense(control)
            fields.append(u)
        return fields, control


class DIRVNet(nn.Module):
    """One field for every unit of every level, coarse to fine.

    Args:
        ndim: 2 or 3.
        levels: Pyramid levels, each half as large as the next; every one has weights of its own.
        units: Variational units of each level.
        shared: Consecutive units of a level that have the same filters and activations.
        filters: Filters of each channel of a field of experts.
        data_kernel: Width of the filters of the residual.
        regulariser_kernel: Width of the filters of the displacement, control points.
        activation: Makes the activations of a number of filters.
        spacing: Voxels between control points, or a number for each axis.
        degree: 1: linear interpolation between control points; 3: cubic B-splines.
        steps: Range from which the step sizes are drawn.
        momentum: Null: gradient descent; otherwise heavy ball (Polyak), this much at the start.
    """

    def __init__(
        self,
        ndim: int,
        levels: int = 1,
        units: int = 7,
        shared: int = 1,
        filters: int = 16,
        data_kernel: int = 7,
        regulariser_kernel: int = 5,
        activation: Callable[[int], Activation] = PiecewiseLinear,
        spacing: int | Sequence[int] = 4,
        degree: int = 1,
        steps: tuple[float, float] = (0.0, 0.1),
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        if ndim not in (2, 3) or units % shared:
            raise UserError(
                f"ndim={ndim}, units={units}, shared={shared}: DIRVNet has 2 or 3 dimensions, and "
                "units in groups of equal size."
            )
        self.spacing = [spacing] * ndim if isinstance(spacing, int) else list(spacing)
        self.degree = degree
        ControlGrid([2] * ndim, self.spacing, degree)

        def experts(channels: int, kernel: int) -> list[FieldOfExperts]:
            return [
                FieldOfExperts(ndim, channels, filters, kernel, activation)
                for _ in range(units // shared)
            ]

        self.levels = nn.ModuleList(
            Level(
                experts(1, data_kernel), experts(ndim, regulariser_kernel), units, steps, momentum
            )
            for _ in range(levels)
        )

    def grids(self, shape: Sequence[int]) -> list[ControlGrid]:
        """The control points of each level of an image, coarse to fine.

        Raises:
            UserError: The coarsest level would be a single voxel wide.
        """
        shapes = [[-(-n // 2**k) for n in shape] for k in reversed(range(len(self.levels)))]
        if min(shapes[0]) < 2:
            raise UserError(
                f"An image of {' x '.join(map(str, shape))} voxels is too small for "
                f"{len(shapes)} levels: lower model.levels."
            )
        return [ControlGrid(level, self.spacing, self.degree) for level in shapes]

    def representable(self, u: Tensor) -> Tensor:
        """The field nearest to u (B, D, *spatial), in least squares, that this model can give."""
        grid = self.grids(u.shape[2:])[-1]
        return grid.dense(grid.fit(u))

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        grids = self.grids(fixed.shape[2:])
        control = torch.zeros(len(fixed), len(self.spacing), *grids[0].points).to(fixed)
        coarser, fields = grids[0], []
        for level, grid in zip(self.levels, grids, strict=True):
            control = grid.refined(control, coarser)
            images = ops.resize(fixed, grid.shape), ops.resize(moving, grid.shape)
            units, control = level(*images, control, grid)
            fields += units
            coarser = grid
        return fields
