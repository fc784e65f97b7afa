import numpy as np
import pytest
import torch
import torch.nn.functional as F

from regnet_lab import ops
from tests.helpers.fields import make_affine_field, random_image, skew_matrix

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def interpolate_linearly(image, shape):
    mode = {4: "bilinear", 5: "trilinear"}[image.ndim]
    return F.interpolate(image, shape, mode=mode, align_corners=False)


@SHAPES
@pytest.mark.parametrize("factor", [1, 1.4, 2, 3])
def test_resizing_up_is_linear_interpolation(shape, factor):
    image, new = random_image(shape, channels=2), [int(n * factor) for n in shape]
    torch.testing.assert_close(ops.resize(image, new), interpolate_linearly(image, new))


@pytest.mark.parametrize("shape", [(8, 15), (8, 9, 5)])
def test_resizing_down_by_whole_numbers_averages_the_cells(shape):
    image, ratio = random_image(shape, channels=2), [4, 3, 5][: len(shape)]
    new = [n // r for n, r in zip(shape, ratio, strict=True)]
    cells = image.numpy().reshape(2, *[k for pair in zip(new, ratio, strict=True) for k in pair])
    expected = cells.mean(axis=tuple(range(2, cells.ndim, 2)))
    np.testing.assert_allclose(ops.resize(image, new)[0], expected)


@SHAPES
def test_resizing_down_keeps_the_mean_of_any_image(shape):
    image, new = random_image(shape, channels=2), [4, 7, 5][: len(shape)]
    small = ops.resize(image, new)
    torch.testing.assert_close(small.flatten(2).mean(2), image.flatten(2).mean(2))
    assert small.abs().max() < image.abs().max()


def cell_centers(old, new):
    """Voxel coordinates, on the old grid, of the centres of the new one's cells."""
    ratio = np.array(old) / np.array(new)
    column = (-1, *[1] * len(old))
    return (np.indices(new) + 0.5) * ratio.reshape(column) - 0.5


@pytest.mark.parametrize("factors", [(0.5, 0.25, 0.5), (2, 1.5, 3), (0.5, 1.75, 0.25)])
@pytest.mark.parametrize("shape", [(16, 12), (8, 12, 16)])
def test_a_ramp_stays_the_same_ramp_in_space(shape, factors):
    new = [int(n * f) for n, f in zip(shape, factors, strict=False)]
    ramps = make_affine_field(np.eye(len(shape)), shape, center=np.zeros(len(shape)))
    at = (..., *[slice(2, -2) if n > old else slice(None) for n, old in zip(new, shape, strict=1)])
    expected = torch.from_numpy(cell_centers(shape, new))[None]
    torch.testing.assert_close(ops.resize(ramps, new)[at], expected[at])


@SHAPES
def test_averaging_a_ramp_over_fractional_cells_errs_by_at_most_an_eighth_of_a_new_voxel(shape):
    new = [-(-n // 2) for n in shape]
    ramps = make_affine_field(np.eye(len(shape)), shape, center=np.zeros(len(shape)))
    error = (ops.resize(ramps, new) - torch.from_numpy(cell_centers(shape, new))[None]).abs()
    for axis, (old, n) in enumerate(zip(shape, new, strict=True)):
        assert error[:, axis].max() <= n / old / 8 + 1e-9


@pytest.mark.parametrize("factors", [(0.5, 0.25, 0.5), (2, 1.5, 3), (0.5, 1.75, 0.25)])
@pytest.mark.parametrize("shape", [(16, 12), (8, 12, 16)])
def test_an_affine_field_is_the_same_map_on_the_new_grid(shape, factors):
    new = [int(n * f) for n, f in zip(shape, factors, strict=False)]
    matrix = skew_matrix(len(shape))
    u = make_affine_field(matrix, shape, center=np.full(len(shape), 1.7))
    column = (-1, *[1] * len(shape))
    x = cell_centers(shape, new) - 1.7
    moved = np.moveaxis(np.moveaxis(x, 0, -1) @ matrix.T, -1, 0)  # in old voxels
    expected = torch.from_numpy(moved * (np.array(new) / np.array(shape)).reshape(column))[None]
    at = (..., *[slice(2, -2) if n > old else slice(None) for n, old in zip(new, shape, strict=1)])
    torch.testing.assert_close(ops.resize_field(u, new)[at], expected[at])


@SHAPES
def test_resizing_to_the_same_grid_changes_nothing(shape):
    u = random_image(shape, channels=len(shape))
    assert torch.equal(ops.resize(u, shape), u)
    assert torch.equal(ops.resize_field(u, shape), u)


@SHAPES
@pytest.mark.parametrize("new", [(18, 22, 21), (3, 5, 4), (5, 17, 3)])
def test_labels_take_the_cell_that_contains_their_center(shape, new):
    labels = torch.randint(0, 9, (2, 1, *shape), generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(labels.double(), new[: len(shape)], mode="nearest-exact").long()
    assert torch.equal(ops.resize_nearest(labels, new[: len(shape)]), expected)
