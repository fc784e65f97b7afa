"""B-spline displacement fields on a grid of control points (free-form deformation).

Along an axis of n voxels, control points p_j lie ``spacing`` voxels apart, symmetric about the
middle of the axis and beyond both ends.  With control values c the displacement is

    u(x) = sum_j b((x - p_j) / spacing) c_j,

in D dimensions a product over the axes (Rueckert et al., IEEE TMI 1999), where b is the linear
(degree 1) or cubic (degree 3) B-spline.  Both reproduce linear functions: control values linear in
p give the same linear u, up to the outermost voxel.  Degree 1 interpolates the control values;
degree 3 smooths them and has one more point at each end.

Evaluation, its adjoint, least-squares fitting and refinement are separable, one matrix per axis.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from regnet_lab.errors import UserError
from regnet_lab.ops.resampling import apply_along_axes
from regnet_lab.ops.sampling import _expand_per_axis


def linear_bspline(t: Tensor) -> Tensor:
    """Evaluate the linear B-spline 1 - |t| for |t| <= 1, else 0."""
    return (1 - t.abs()).clamp(min=0)


def cubic_bspline(t: Tensor) -> Tensor:
    """Evaluate the cubic B-spline, 2/3 at 0 and zero for |t| >= 2.

    >>> cubic_bspline(torch.tensor([0.0, 1.0, 2.0]))
    tensor([0.6667, 0.1667, 0.0000])
    """
    t = t.abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


BASIS_FUNCTIONS: dict[int, Callable[[Tensor], Tensor]] = {1: linear_bspline, 3: cubic_bspline}


def compute_control_points(n: int, spacing: int, degree: int = 1) -> Tensor:
    """Compute the voxel coordinates of the control points along an axis of n voxels, float64."""
    cells = ceil((n - 1) / spacing)
    beyond = (degree - 1) // 2
    first = (n - 1 - cells * spacing) / 2 - beyond * spacing
    count = cells + 1 + 2 * beyond
    return first + spacing * torch.arange(count, dtype=torch.float64)


def compute_basis_weights(x: Tensor, n: int, spacing: int, degree: int = 1) -> Tensor:
    """Compute the weight (len(x), points) of every control point at voxel coordinates ``x``.

    Beyond the outermost voxels the displacement is extrapolated linearly.
    """
    points = compute_control_points(n, spacing, degree)

    def evaluate_basis(x: Tensor) -> Tensor:
        return BASIS_FUNCTIONS[degree]((x[:, None] - points) / spacing)

    edge = x.clamp(0, n - 1)
    inner = torch.where(x < edge, edge + 1, edge - 1).clamp(0, n - 1)
    slope = evaluate_basis(edge) - evaluate_basis(inner)
    return evaluate_basis(edge) + (x - edge).abs()[:, None] * slope


@lru_cache(maxsize=256)
def compute_evaluation_matrix(n: int, spacing: int, degree: int) -> Tensor:
    """Compute the matrix (n, points) from control values to voxels."""
    return compute_basis_weights(torch.arange(n, dtype=torch.float64), n, spacing, degree)


@lru_cache(maxsize=256)
def compute_fitting_matrix(n: int, spacing: int, degree: int) -> Tensor:
    """Compute the matrix (points, n) from voxels to the least-squares control values."""
    return torch.linalg.pinv(compute_evaluation_matrix(n, spacing, degree), rtol=1e-9)


@lru_cache(maxsize=256)
def compute_refinement_matrix(coarse: int, fine: int, spacing: int, degree: int) -> Tensor:
    """Compute the matrix (points, coarse points) from control values of an axis to a finer one."""
    centers = (torch.arange(fine, dtype=torch.float64) + 0.5) * coarse / fine - 0.5
    weights = compute_basis_weights(centers, coarse, spacing, degree)
    return compute_fitting_matrix(fine, spacing, degree) @ weights


class ControlPointGrid:
    """A grid of B-spline control points over an image grid.

    Args:
        shape: Voxels of the image along each axis.
        spacing: Voxels between control points along each axis, 1 or more.
        degree: 1 or 3.

    >>> grid = ControlPointGrid((9, 9), (4, 4))
    >>> grid.control_shape
    (3, 3)
    >>> grid.evaluate(torch.ones(1, 2, 3, 3)).unique()
    tensor([1.])
    """

    def __init__(self, shape: Sequence[int], spacing: Sequence[int], degree: int = 1) -> None:
        if degree not in BASIS_FUNCTIONS:
            raise UserError(f"degree={degree}: the degree of the B-spline must be 1 or 3.")
        if len(spacing) != len(shape) or min(spacing) < 1:
            raise UserError(f"spacing={list(spacing)}: give {len(shape)} numbers, each 1 or more.")
        self.shape, self.spacing, self.degree = tuple(shape), tuple(spacing), degree
        self.axes = [(n, s, degree) for n, s in zip(shape, spacing, strict=True)]
        self.control_shape = tuple(compute_evaluation_matrix(*axis).shape[1] for axis in self.axes)

    def evaluate(self, control: Tensor) -> Tensor:
        """Evaluate the field (B, C, *shape) of control values (B, C, *control_shape)."""
        return apply_along_axes(control, [compute_evaluation_matrix(*axis) for axis in self.axes])

    def apply_adjoint(self, force: Tensor) -> Tensor:
        """Compute the derivative of <force, u> with respect to the control values."""
        return apply_along_axes(force, [compute_evaluation_matrix(*axis).T for axis in self.axes])

    def fit(self, u: Tensor) -> Tensor:
        """Compute the control values whose field is closest to u in the sum of squares."""
        return apply_along_axes(u, [compute_fitting_matrix(*axis) for axis in self.axes])

    def refine(self, control: Tensor, coarse: "ControlPointGrid") -> Tensor:
        """Convert control values of ``coarse``, over the same field of view, to this finer grid.

        Displacements keep their length in mm and therefore grow in voxels.
        """
        sizes = [*zip(coarse.shape, self.shape, strict=True)]
        axes = zip(sizes, self.spacing, strict=True)
        matrices = [compute_refinement_matrix(*size, s, self.degree) for size, s in axes]
        u = apply_along_axes(control, matrices)
        return u * _expand_per_axis([fine / coarse for coarse, fine in sizes], u)
