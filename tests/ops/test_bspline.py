"""Control point grids: interpolation, adjoint, fit and refinement."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline, RegularGridInterpolator

from regnet_lab.models import DIRVNet
from regnet_lab.ops.bspline import ControlPointGrid, compute_control_points, cubic_bspline
from tests.helpers.images import smooth

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9), (18, 25)])


SMALL = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


DEGREES = pytest.mark.parametrize("degree", [1, 3])


def affine(shape, seed=0, at=None):
    """A x + t, at voxels or at given coordinates (D, *grid); float64."""
    rng = np.random.default_rng(seed)
    x = np.indices(shape, dtype=float) if at is None else at
    moved = np.einsum("ij,j...->i...", rng.normal(size=(len(shape),) * 2), x)
    return torch.from_numpy(moved + rng.normal(size=(len(shape), *[1] * len(shape))))[None]


def mesh(axes):
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@SHAPES
@DEGREES
@pytest.mark.parametrize("spacing", [1, 3, 4])
def test_linear_control_values_give_the_linear_field(shape, degree, spacing):
    grid = ControlPointGrid(shape, [spacing] * len(shape), degree)
    at = mesh([compute_control_points(n, spacing, degree).numpy() for n in shape])
    u = affine(shape)
    torch.testing.assert_close(grid.evaluate(affine(shape, at=at)), u)
    torch.testing.assert_close(grid.evaluate(grid.fit(u)), u)


@SHAPES
def test_degree_one_interpolates_as_scipy_does(shape):
    spacing = [4, 3, 2][: len(shape)]
    grid = ControlPointGrid(shape, spacing)
    values = torch.randn(1, 1, *grid.control_shape, dtype=torch.double)
    axes = [compute_control_points(n, s).numpy() for n, s in zip(shape, spacing, strict=True)]
    peer = RegularGridInterpolator(axes, values[0, 0].numpy())
    expected = peer(np.moveaxis(np.indices(shape), 0, -1))
    np.testing.assert_allclose(grid.evaluate(values)[0, 0], expected, atol=1e-10)


@SMALL
def test_degree_three_is_a_cubic_spline(shape):
    n, spacing = shape[0], 3
    grid = ControlPointGrid(shape, [spacing] * len(shape), 3)
    values = torch.randn(1, 1, *grid.control_shape, dtype=torch.double)
    points = [compute_control_points(n, spacing, 3).numpy() for n in shape]
    expected = values[0, 0].numpy()
    for axis, (p, n) in enumerate(zip(points, shape, strict=True)):
        knots = p[0] + spacing * np.arange(-2, len(p) + 2)
        expected = BSpline(knots, expected, 3, axis=axis)(np.arange(n))
    np.testing.assert_allclose(grid.evaluate(values)[0, 0], expected, atol=1e-10)
    torch.testing.assert_close(
        cubic_bspline(torch.tensor([0.0, 1.0, -1.0, 2.0])), torch.tensor([4, 1, 1, 0]) / 6
    )


@SHAPES
@DEGREES
def test_the_adjoint_of_interpolation(shape, degree):
    grid = ControlPointGrid(shape, [4] * len(shape), degree)
    control = torch.randn(2, 3, *grid.control_shape, dtype=torch.double)
    force = torch.randn(2, 3, *shape, dtype=torch.double)
    pairing = (grid.evaluate(control) * force).sum()
    torch.testing.assert_close((control * grid.apply_adjoint(force)).sum(), pairing)


@SMALL
@DEGREES
def test_no_control_values_fit_better(shape, degree):
    model = DIRVNet(len(shape), units=1, filters=1, control_point_spacing=3, spline_degree=degree)
    grid = model.make_control_grids(shape)[-1]
    u = smooth(shape, 3, channels=len(shape)).double() * 4
    units = torch.eye(math.prod(grid.control_shape), dtype=torch.double).view(
        -1, 1, *grid.control_shape
    )
    basis = grid.evaluate(units).flatten(1).T.numpy()  # (voxels, control values)
    for component, best in zip(u[0], model.project_field(u)[0], strict=True):
        fit = np.linalg.lstsq(basis, component.flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose(best.flatten(), basis @ fit, atol=1e-6)
    torch.testing.assert_close(model.project_field(model.project_field(u)), model.project_field(u))
    assert (model.project_field(u) - u).abs().max() > 1e-3


@SHAPES
@DEGREES
def test_a_finer_grid_takes_over_linear_fields_in_its_own_voxels(shape, degree):
    half_shape = [-(-n // 2) for n in shape]
    coarse, fine = (ControlPointGrid(s, [4] * len(s), degree) for s in (half_shape, shape))
    ratio = np.array([n / m for n, m in zip(shape, half_shape, strict=True)])
    at = [(np.arange(m) + 0.5) * r - 0.5 for m, r in zip(half_shape, ratio, strict=True)]
    factor = torch.from_numpy(ratio).view(1, -1, *[1] * len(shape))
    carried = fine.refine(coarse.fit(affine(shape, at=mesh(at)) / factor), coarse)
    torch.testing.assert_close(fine.evaluate(carried), affine(shape))
