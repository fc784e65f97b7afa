"""Figures of a registration."""

import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from regnet_lab import ops
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.visualization import panels, slices

SHAPES = [(9, 11), (7, 8, 9)]


MANY_FIELDS = [[3], [3, 5, 9], list(range(2, 14))]


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make_pair(shape, labels=True):
    keys = {"fixed": 1, "moving": 2}
    pair = {key: noise(2, 1, *shape, seed=seed) for key, seed in keys.items()}
    pair["spacing"] = torch.arange(1.0, len(shape) + 1).repeat(2, 1)
    pair["name"] = ["a <- b", "c <- d"]
    if labels:
        pair |= {f"{key}_labels": (pair[key] > 0.5).long() * 7 for key in keys}
    return pair


def make_registration(pair, scale=1.5):
    shape = pair["fixed"].shape[2:]
    return apply_displacement(pair, [noise(2, len(shape), *shape, seed=3) * scale])


def find_axes(figure, start):
    return [axes for axes in figure.axes if axes.get_title().startswith(start)]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_figure_has_every_view_in_every_plane_and_labels_if_given(shape, labels):
    pair = make_pair(shape, labels)
    figure = panels.draw_registration(pair, make_registration(pair))
    names = [
        "fixed\n",
        "moving",
        "warped",
        "fixed - moving",
        "fixed - warped",
        "grid",
        "|u| (voxels)",
    ]
    names += ["log det J", *["labels"] * labels]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert all(title.startswith(name) for title, name in zip(titles, names, strict=True))
    planes, colour_bars = len(slices.get_orthogonal_planes(shape)), 4
    assert len(figure.axes) == planes * len(names) + colour_bars
    assert "a <- b" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "det J ≤ 0" in legend[0]
    assert len(legend) == (3 if labels else 1)
    assert figure.get_size_inches()[0] * figure.dpi <= 1601
    figure.canvas.draw()


@pytest.mark.parametrize("shape", SHAPES)
def test_images_have_the_lower_axis_right_the_other_up_and_true_aspect(shape):
    pair = make_pair(shape, labels=False)
    figure = panels.draw_registration(pair, make_registration(pair))
    (axes,) = find_axes(figure, "fixed\n")
    volume = pair["fixed"][0, 0].numpy()
    plane = slices.get_orthogonal_planes(slices.find_center_voxel(volume - volume.min()))[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), slices.extract_slice(volume, plane).T)
    assert axes.images[0].origin == "lower"
    assert axes.get_ylim() == (-0.5, shape[1] - 0.5)
    assert axes.get_aspect() == pytest.approx(2)  # axis 1 has 2 mm, axis 0 has 1 mm


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_share_one_symmetric_scale(shape):
    pair = make_pair(shape)
    figure = panels.draw_registration(pair, make_registration(pair))
    before, after = (
        find_axes(figure, f"fixed - {name}")[0].images[0] for name in ("moving", "warped")
    )
    assert before.get_clim() == after.get_clim()
    assert before.get_clim()[0] == -before.get_clim()[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_jacobian_view_shows_folds_and_their_percentage(shape):
    pair = make_pair(shape)
    registration = make_registration(pair)
    determinant = ops.jacobian_determinant(registration.displacement)[0].numpy()
    assert 0 < (determinant <= 0).mean() < 1
    (axes,) = find_axes(panels.draw_registration(pair, registration), "log det J")
    assert f"{100 * (determinant <= 0).mean():.3g} %" in axes.get_title()
    plane = slices.get_orthogonal_planes(
        slices.find_center_voxel(pair["fixed_labels"][0, 0].numpy() != 0)
    )[0]
    folded = slices.extract_slice(determinant, plane).T <= 0
    shown, overlay = (image.get_array() for image in axes.images)
    np.testing.assert_array_equal(overlay[..., 3] == 1, folded)
    expected = np.log(slices.extract_slice(determinant, plane).T[~folded])
    np.testing.assert_allclose(shown[~folded], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_those_of_fixed_and_warped_moving_labels(shape):
    pair = make_pair(shape)
    block = torch.zeros(2, 1, *shape, dtype=torch.long)
    block[(..., *[slice(2, 5)] * len(shape))] = 3
    pair["moving_labels"] = block
    pair["fixed_labels"] = block.roll(-1, dims=2)
    shift = torch.zeros(2, len(shape), *shape)
    shift[:, 0] = 1
    fixed, warped = (
        contour.get_paths()[0].vertices
        for contour in find_axes(
            panels.draw_registration(pair, apply_displacement(pair, [shift])), "labels"
        )[0].collections
    )
    np.testing.assert_array_equal(fixed, warped)
    assert (fixed.min(0) == [0.5, 1.5]).all()


@pytest.mark.parametrize("count", MANY_FIELDS, ids=len)
@pytest.mark.parametrize("ndim", [2, 3])
def test_iterations_have_a_column_per_field_up_to_nine(ndim, count):
    pair = make_pair((12, 10, 9)[:ndim])
    fields = [noise(2, ndim, *[n] * ndim, seed=n) for n in count]
    figure = panels.draw_iterations(pair, apply_displacement(pair, fields))
    columns = [axes.get_title() for axes in find_axes(figure, "field")]
    assert len(columns) == min(len(count), 9)
    assert columns[0].startswith(f"field 1 of {len(count)}")
    assert columns[-1].startswith(f"field {len(count)} of {len(count)}")
    assert (
        len(find_axes(figure, "fixed - warped")) == len(find_axes(figure, "grid")) == len(columns)
    )


@pytest.mark.parametrize("shape", [(12, 8), (12, 8, 4)])
def test_iterations_resize_coarse_fields_to_the_fixed_grid(shape):
    pair = make_pair(shape)
    coarse = torch.zeros(2, len(shape), *[n // 2 for n in shape])
    coarse[:, 0] = 1  # one coarse voxel is two fine ones
    figure = panels.draw_iterations(
        pair, apply_displacement(pair, [coarse, torch.zeros(2, len(shape), *shape)])
    )
    moved, undisplaced = (
        next(c for c in axes.collections if isinstance(c, LineCollection)).get_segments()
        for axes in find_axes(figure, "grid")
    )
    for line, regular in zip(moved, undisplaced, strict=True):
        np.testing.assert_allclose(
            line - regular, np.tile([2.0, 0.0], (len(regular), 1)), atol=1e-6
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_nan_and_zero_fields_can_be_drawn(shape):
    pair = make_pair(shape)
    for u in (torch.full((2, len(shape), *shape), torch.nan), torch.zeros(2, len(shape), *shape)):
        registration = apply_displacement(pair, [u.requires_grad_()])
        panels.draw_registration(pair, registration).canvas.draw()
        panels.draw_iterations(pair, registration).canvas.draw()


def test_figures_do_not_change_the_global_state_of_matplotlib():
    pair = make_pair((9, 11))
    before = dict(mpl.rcParams)
    panels.draw_registration(pair, make_registration(pair)).canvas.draw()
    assert dict(mpl.rcParams) == before
    code = (
        "import sys, regnet_lab.visualization.panels; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
