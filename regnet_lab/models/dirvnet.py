"""DIRV-Net: unrolled descent on a learned energy of the residual image and the displacement.

After the public TensorFlow implementation of DIRV-Net; variational networks: Hammernik et al., MRM
2018; Kobler et al., GCPR 2017.  Differences: docs/dirvnet.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.models.field_of_experts import Activation, FieldOfExperts, PiecewiseLinear
from regnet_lab.ops.bspline import ControlPointGrid


class PyramidLevel(nn.Module):
    """The variational units of one pyramid level.

    With control values c, their displacement u = A c and the residual r = moving(x + u) - fixed,
    unit t computes (``beta`` is zero without momentum)

        c_(t+1) = c_t - |alpha_t| (A^T (D_t(r) grad moving(x + u)) + R_t(c_t))
                  + beta_t (c_t - c_(t-1))

    Args:
        data: Fields of experts D on the residual, each shared by equally many consecutive units.
        regularisers: Fields of experts R on the control values.
        steps: Range of the uniform initialisation of alpha.
        momentum: Initial beta, or none.
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
        self.momentum = None if momentum is None else nn.Parameter(torch.full([units], momentum))

    def forward(
        self, fixed: Tensor, moving: Tensor, control: Tensor, grid: ControlPointGrid
    ) -> tuple[list[Tensor], Tensor]:
        """Return the displacement after every unit, and the last control values."""
        units, change, fields = len(self.steps), torch.zeros_like(control), []
        u = grid.evaluate(control)
        for t, alpha in enumerate(self.steps.abs()):
            expert = t * len(self.data) // units
            warped = ops.warp(moving, u)
            force = self.data[expert](warped - fixed) * ops.gradient(warped)[:, 0]
            slope = grid.apply_adjoint(force) + self.regularisers[expert](control)
            beta = 0 if self.momentum is None else self.momentum[t]
            change = beta * change - alpha * slope
            control = control + change
            u = grid.evaluate(control)
            fields.append(u)
        return fields, control


class DIRVNet(nn.Module):
    """Variational network over a pyramid; returns one field for every unit, coarse to fine.

    Args:
        ndim: 2 or 3.
        levels: Pyramid levels, each half as large as the next; each has its own weights.
        units: Variational units of each level.
        shared_units: Consecutive units of a level that share filters and activations.
        filters: Filters of each channel of a field of experts.
        data_kernel_size: Size of the filters of the residual, voxels.
        regulariser_kernel_size: Size of the filters of the displacement, control points.
        activation: Creates the activations of a number of filters.
        control_point_spacing: Voxels between control points, for all axes or for each.
        spline_degree: 1: linear interpolation between control points; 3: cubic B-splines.
        step_size_range: Range of the uniform initialisation of the step sizes.
        momentum: Null: gradient descent; otherwise initial momentum of the heavy ball (Polyak).
    """

    def __init__(
        self,
        ndim: int,
        levels: int = 1,
        units: int = 7,
        shared_units: int = 1,
        filters: int = 16,
        data_kernel_size: int = 7,
        regulariser_kernel_size: int = 5,
        activation: Callable[[int], Activation] = PiecewiseLinear,
        control_point_spacing: int | Sequence[int] = 4,
        spline_degree: int = 1,
        step_size_range: tuple[float, float] = (0.0, 0.1),
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        if ndim not in (2, 3) or units % shared_units:
            raise UserError(
                f"ndim={ndim}, units={units}, shared_units={shared_units}: ndim must be 2 or 3, "
                "and units a multiple of shared_units."
            )
        spacing = control_point_spacing
        self.control_point_spacing = [spacing] * ndim if isinstance(spacing, int) else [*spacing]
        self.spline_degree = spline_degree
        ControlPointGrid([2] * ndim, self.control_point_spacing, spline_degree)

        def make_experts(channels: int, kernel: int) -> list[FieldOfExperts]:
            return [
                FieldOfExperts(ndim, channels, filters, kernel, activation)
                for _ in range(units // shared_units)
            ]

        self.levels = nn.ModuleList(
            PyramidLevel(
                make_experts(1, data_kernel_size),
                make_experts(ndim, regulariser_kernel_size),
                units,
                step_size_range,
                momentum,
            )
            for _ in range(levels)
        )

    def make_control_grids(self, shape: Sequence[int]) -> list[ControlPointGrid]:
        """Return the control points of each level of an image, coarse to fine."""
        shapes = [[-(-n // 2**k) for n in shape] for k in reversed(range(len(self.levels)))]
        if min(shapes[0]) < 2:
            raise UserError(
                f"An image of {' x '.join(map(str, shape))} voxels is too small for "
                f"{len(shapes)} levels: lower model.levels."
            )
        options = self.control_point_spacing, self.spline_degree
        return [ControlPointGrid(level, *options) for level in shapes]

    def project_field(self, u: Tensor) -> Tensor:
        """Return the least-squares projection of u (B, D, *spatial) on the model's fields."""
        grid = self.make_control_grids(u.shape[2:])[-1]
        return grid.evaluate(grid.fit(u))

    def forward(self, fixed: Tensor, moving: Tensor) -> list[Tensor]:
        grids = self.make_control_grids(fixed.shape[2:])
        control = fixed.new_zeros(len(fixed), fixed.ndim - 2, *grids[0].control_shape)
        previous_grid, fields = grids[0], []
        for level, grid in zip(self.levels, grids, strict=True):
            control = grid.refine(control, previous_grid)
            images = ops.resize(fixed, grid.shape), ops.resize(moving, grid.shape)
            units, control = level(*images, control, grid)
            fields += units
            previous_grid = grid
        return fields
