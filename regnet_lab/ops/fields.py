"""Composition, integration, inversion and derivatives of displacement fields; affine fields."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from regnet_lab.ops.precision import full_precision
from regnet_lab.ops.resampling import crop
from regnet_lab.ops.sampling import Field, Image, identity_grid, sample_at, warp

FIXED_POINT_ITERATIONS = 4  # of invert, before Levenberg-Marquardt steps


@full_precision
def compose(first: Field, then: Field) -> Field:
    """Compose two displacement fields: id + w = (id + then) o (id + first).

    w(x) = first(x) + then(x + first(x)), so warp(m, w) = warp(warp(m, then), first).

    >>> shift = torch.ones(1, 2, 3, 3)
    >>> compose(shift, shift).unique()
    tensor([2.])
    """
    return first + warp(then, first)


@full_precision
def integrate(velocity: Field, steps: int = 7) -> Field:
    """Integrate a stationary velocity field to time one: exp(v) = (exp(v / 2^steps))^(2^steps).

    Scaling and squaring (Arsigny et al., MICCAI 2006), ``steps`` squarings.

    >>> x = torch.arange(-4.0, 5.0)
    >>> v = torch.stack([0.1 * x[:, None].expand(9, 9), torch.zeros(9, 9)])[None]
    >>> round(integrate(v)[0, 0, 5, 0].item(), 3)  # exp(0.1) - 1 at x = 1
    0.105
    """
    u = velocity / 2**steps
    for _ in range(steps):
        u = compose(u, u)
    return u


@full_precision
def invert(u: Field, iterations: int = 30, tolerance: float = 1e-4) -> Field:
    """Invert a displacement field: find v with (id + u) o (id + v) = id, without a gradient.

    Each voxel is solved separately.  The first iterations are the fixed point v <- -u(x + v) (Chen
    et al., Med. Phys. 2008), which is cheap but diverges where u changes by more than a voxel per
    voxel, even without folding.  The following ones solve r(v) = v + u(x + v) = 0 by the
    Levenberg-Marquardt method with the Jacobian J = I + du/dx at x + v:
    v <- v - (J^T J + l)^-1 J^T r, where l decreases if that makes |r| smaller and increases
    otherwise.  Steps that make |r| larger are rejected.

    A voxel has converged when |r| is at most ``tolerance``, in voxels.  ``compose(v, u)`` is r; it
    stays larger where the map folds or where x + v lies outside the grid.

    >>> v = invert(torch.ones(1, 2, 5, 5))
    >>> v.unique()
    tensor([-1.])
    """
    return torch.cat([_invert_case(case, iterations, tolerance) for case in u.detach().split(1)])


def _invert_case(u: Field, iterations: int, tolerance: float) -> Field:
    """Invert one case (1, D, *spatial), iterating only over voxels that have not converged."""
    ndim, eye = u.shape[1], torch.eye(u.shape[1]).to(u)
    slopes = gradient(u).flatten(1, 2)
    x = identity_grid(u.shape[2:], u).flatten(2).mT  # (1, N, D), as all below
    v = -u.flatten(2).mT
    r, damping = v + sample_at(u, x + v), torch.full_like(v[..., :1], 1e-3)
    active = torch.arange(x.shape[1], device=u.device)
    for iteration in range(iterations):
        active = active[r[0, active].norm(dim=1) > tolerance]
        if not len(active):
            break
        v_old, r_old, damping_old = v[:, active], r[:, active], damping[:, active]
        step = r_old
        if iteration >= FIXED_POINT_ITERATIONS:
            jacobian = sample_at(slopes, x[:, active] + v_old).unflatten(-1, (ndim, ndim)) + eye
            normal = jacobian.mT @ jacobian + damping_old[..., None] * eye
            step = torch.linalg.solve(normal, jacobian.mT @ r_old[..., None])[..., 0]
        v_new = v_old - step
        r_new = v_new + sample_at(u, x[:, active] + v_new)
        better = r_new.norm(dim=-1, keepdim=True) < r_old.norm(dim=-1, keepdim=True)
        v[:, active] = torch.where(better, v_new, v_old)
        r[:, active] = torch.where(better, r_new, r_old)
        if iteration >= FIXED_POINT_ITERATIONS:
            changed = torch.where(better, damping_old / 4, damping_old * 8)
            damping[:, active] = changed.clamp(1e-7, 1e7)
    return v.mT.reshape(u.shape)


def gradient(x: Image) -> Float[Tensor, "b c d *spatial"]:
    """Compute central differences (x[i+1] - x[i-1]) / 2 along every axis, one-sided at the border.

    Channel d of the result's third axis is the derivative along axis d, 0 on an axis of one voxel.
    """
    axes = range(2, x.ndim)
    slopes = [torch.gradient(x, dim=k)[0] if x.shape[k] > 1 else x * 0 for k in axes]
    return torch.stack(slopes, dim=2)


def forward_difference(x: Image) -> Float[Tensor, "b c d *inner"]:
    """Compute x[i+1] - x[i] along every axis, on the grid without the last voxel of each axis."""
    inner = [slice(n - 1) for n in x.shape[2:]]
    return torch.stack([crop(x.diff(dim=axis), inner) for axis in range(2, x.ndim)], dim=2)


def determinant(matrix: Float[Tensor, "b d e *spatial"]) -> Float[Tensor, "b *spatial"]:
    """Compute the determinant of a field of D x D matrices by Laplace expansion."""

    def minor(columns: list[int]) -> Tensor:
        """Compute the determinant of these columns in as many of the last rows."""
        row = matrix[:, matrix.shape[1] - len(columns)]
        total = row[:, columns[0]]
        if len(columns) == 1:
            return total
        total = total * minor(columns[1:])
        for k, column in enumerate(columns[1:], start=1):
            term = row[:, column] * minor(columns[:k] + columns[k + 1 :])
            total = total - term if k % 2 else total + term
        return total

    return minor(list(range(matrix.shape[2])))


@full_precision
def jacobian_determinant(u: Field, scheme: str = "central") -> Float[Tensor, "b *inner"]:
    """Compute det(I + du/dx), the local change of volume; zero or negative where the map folds.

    By ``central`` differences, on the whole grid, or ``forward`` differences, on the grid without
    the last voxel of each axis.  Central differences miss folds one voxel wide.

    >>> u = 0.1 * identity_grid((4, 4), torch.zeros(1))  # expansion by 10 % along both axes
    >>> round(jacobian_determinant(u)[0, 2, 2].item(), 4)
    1.21
    """
    slope = {"central": gradient, "forward": forward_difference}[scheme](u)
    unit = torch.eye(u.shape[1], dtype=slope.dtype, device=slope.device)
    return determinant(slope + unit.view(1, *unit.shape, *[1] * (u.ndim - 2)))


@full_precision
def transform_points(
    matrix: Float[Tensor, "*b e e"], points: Float[Tensor, "*b n d"]
) -> Float[Tensor, "*b n d"]:
    """Apply a homogeneous matrix (D+1, D+1), such as world-to-voxel, to points (..., N, D)."""
    return points @ matrix[..., :-1, :-1].mT + matrix[..., None, :-1, -1]


def affine_field(matrix: Float[Tensor, "b e e"], shape: Sequence[int]) -> Field:
    """Compute the displacement u(x) = A x + t - x of an affine map between voxels of one grid.

    The homogeneous matrix is [A t; 0 1], (B, D+1, D+1); the field is (B, D, *shape) in voxels.

    >>> shift = torch.tensor([[[1.0, 0, 2], [0, 1, 0], [0, 0, 1]]])
    >>> affine_field(shift, (1, 2))
    tensor([[[[2., 2.]],
    <BLANKLINE>
             [[0., 0.]]]])
    """
    x = identity_grid(shape, matrix)
    moved = transform_points(matrix, x.flatten(2).transpose(1, 2).expand(len(matrix), -1, -1))
    return moved.transpose(1, 2).view(len(matrix), -1, *shape) - x
