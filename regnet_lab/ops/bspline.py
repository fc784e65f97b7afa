"""Displacements spanned by a grid of control points, after free-form deformation.

Along an axis of n voxels the control points lie ``spacing`` voxels apart, symmetrically about the
middle of the axis and far enough out that every voxel is inside the grid; the control values c give

    u(x) = sum_j b((x - p_j) / spacing) c_j,

in D dimensions the product over the axes (Rueckert et al., IEEE TMI 1999), with b the hat function
(degree 1) or the cubic B-spline (degree 3).  Both reproduce linear functions: control values that
are linear in p give the same linear u, to the outermost voxel.  Degree 1 interpolates the control
values, degree 3 only smooths them and has one more point at each end.

Everything separates into one small matrix for each axis: evaluation, its adjoint, the best
approximation of a given displacement, and the way to a finer grid.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from regnet_lab.errors import UserError
from regnet_lab.ops import full_precision


def hat(t: Tensor) -> Tensor:
    """Linear B-spline: 1 - |t| within one knot, else 0."""
    return (1 - t.abs()).clamp(min=0)


def cubic(t: Tensor) -> Tensor:
    """Cubic B-spline, from 2/3 at 0 to 0 two knots away."""
    t = t.abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


BUMPS: dict[int, Callable[[Tensor], Tensor]] = {1: hat, 3: cubic}


def control_points(n: int, spacing: int, degree: int = 1) -> Tensor:
    """Coordinates, in voxels, of the control points along an axis of n voxels; float64."""
    cells = ceil((n - 1) / spacing)
    beyond = (degree - 1) // 2
    first = (n - 1 - cells * spacing) / 2 - beyond * spacing
    count = cells + 1 + 2 * beyond
    return first + spacing * torch.arange(count, dtype=torch.float64)


def weights(at: Tensor, n: int, spacing: int, degree: int = 1) -> Tensor:
    """(len(at), points) share of every control point in the value at voxel coordinates.

    Beyond the outermost voxels the values go on linearly.
    """
    points = control_points(n, spacing, degree)

    def rows(x: Tensor) -> Tensor:
        return BUMPS[degree]((x[:, None] - points) / spacing)

    edge = at.clamp(0, n - 1)
    inwards = torch.where(at < edge, edge + 1, edge - 1).clamp(0, n - 1)
    return rows(edge) + (at - edge).abs()[:, None] * (rows(edge) - rows(inwards))


@lru_cache(maxsize=256)
def evaluation(n: int, spacing: int, degree: int) -> Tensor:
    """(n, points) from control values to voxels."""
    return weights(torch.arange(n, dtype=torch.float64), n, spacing, degree)


@lru_cache(maxsize=256)
def approximation(n: int, spacing: int, degree: int) -> Tensor:
    """(points, n) from voxels to the control values that fit them best, in least squares."""
    return torch.linalg.pinv(evaluation(n, spacing, degree), rtol=1e-9)


@lru_cache(maxsize=256)
def refinement(coarse: int, fine: int, spacing: int, degree: int) -> Tensor:
    """(points, coarse points) from control values of an axis to those of a finer one."""
    centres = (torch.arange(fine, dtype=torch.float64) + 0.5) * coarse / fine - 0.5
    seen = weights(centres, coarse, spacing, degree)
    return approximation(fine, spacing, degree) @ seen


@full_precision
def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply a matrix (new_k, n_k) along every spatial axis k of (B, C, *n); gives (B, C, *new)."""
    for axis, matrix in enumerate(matrices, start=2):
        x = (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
    return x


class ControlGrid:
    """The control points of images of a size.

    Args:
        shape: Voxels along each axis.
        spacing: Voxels between control points along each axis.
        degree: 1 or 3.

    Raises:
        UserError: There is no such degree or spacing.
    """

    def __init__(self, shape: Sequence[int], spacing: Sequence[int], degree: int = 1) -> None:
        if degree not in BUMPS:
            raise UserError(f"degree={degree}: control points interpolate with degree 1 or 3.")
        if len(spacing) != len(shape) or min(spacing) < 1:
            raise UserError(f"spacing={list(spacing)}: give {len(shape)} numbers, each 1 or more.")
        self.shape, self.spacing, self.degree = tuple(shape), tuple(spacing), degree
        self.axes = [(n, s, degree) for n, s in zip(shape, spacing, strict=True)]
        self.points = tuple(evaluation(*axis).shape[1] for axis in self.axes)

    def dense(self, control: Tensor) -> Tensor:
        """Values u (B, C, *shape) of control values (B, C, *points)."""
        return along_axes(control, [evaluation(*axis) for axis in self.axes])

    def adjoint(self, force: Tensor) -> Tensor:
        """Derivative of <force, u> with respect to the control values, (B, C, *points)."""
        return along_axes(force, [evaluation(*axis).T for axis in self.axes])

    def fit(self, u: Tensor) -> Tensor:
        """Control values whose dense field is nearest to u in the sum of squares."""
        return along_axes(u, [approximation(*axis) for axis in self.axes])

    def refined(self, control: Tensor, coarse: "ControlGrid") -> Tensor:
        """Control values of ``coarse``, on the same field of view, as those of this finer grid.

        Displacements keep their length in millimetres, hence grow in voxels.
        """
        sizes = [*zip(coarse.shape, self.shape, strict=True)]
        steps = zip(sizes, self.spacing, strict=True)
        u = along_axes(control, [refinement(*size, s, self.degree) for size, s in steps])
        growth = u.new_tensor([new / old for old, new in sizes])
        return u * growth.view(1, -1, *[1] * len(sizes))
