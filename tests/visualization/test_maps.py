"""Figures of folds, deformed grids and slices show the values they are given."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.visualization import maps, views
from regnet_lab.visualization.slices import extract_slice, find_center_voxel, get_orthogonal_planes

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).numpy()


@SHAPES
def test_folding_map_marks_and_counts_folded_voxels(shape):
    u = 1.5 * noise(len(shape), *shape)
    image = noise(*shape, seed=1)
    folded = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy() <= 0
    figure = maps.draw_folding_map(u, [1.0] * len(shape), image)
    (title,) = {a.get_title() for a in figure.axes if a.get_title().startswith("folds\n")}
    assert title == f"folds\n{folded.sum()} of {folded.size} voxels"
    places = get_orthogonal_planes(find_center_voxel(folded))
    shown = [axes for axes in figure.axes if len(axes.images) == 2][::2]
    for axes, plane in zip(shown, places, strict=True):
        grey, red = (image.get_array() for image in axes.images)
        np.testing.assert_array_equal(grey, extract_slice(image, plane).T)
        np.testing.assert_array_equal(red[..., 3] == 1, extract_slice(folded, plane).T)
        assert (red[red[..., 3] == 1] == views.FOLD_COLOR).all()
    assert "det J ≤ 0" in figure.legends[0].get_texts()[0].get_text()


def test_folding_map_without_folds_has_no_red_and_needs_no_image():
    figure = maps.draw_folding_map(np.zeros((2, 9, 11), np.float32), [1.0, 1.0])
    red = figure.axes[0].images[1].get_array()
    assert not red.any()
    assert (
        figure.axes[0].images[0].to_rgba(figure.axes[0].images[0].get_array())[..., :3] == 1
    ).all()


@pytest.mark.parametrize("unit", ["voxels", "mm"])
@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2), (2, 1)])
def test_deformed_grid_shows_in_plane_components_in_the_unit(plane, unit):
    spacing = [1.0, 2.0, 4.0]
    u = noise(3, 12, 10, 9)
    right, up = sorted(plane)
    (third,) = {0, 1, 2} - {*plane}
    figure = maps.draw_deformed_grid(u, spacing, plane, at=3, every=4, unit=unit)
    (axes,) = figure.axes
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    scale = np.array(spacing)[[right, up]] if unit == "mm" else np.ones(2)
    step = max(1, round(4 / (spacing[right] if unit == "mm" else 1)))
    second = lines.get_segments()[1]
    inside = np.take(u, 3, axis=third + 1)
    n = u.shape[1 + up]
    expected = [
        np.array([step + inside[right][step, k], k + inside[up][step, k]]) * scale for k in range(n)
    ]
    np.testing.assert_allclose(second, expected, rtol=1e-5)
    assert axes.get_xlabel() == f"axis {right} ({unit})"
    assert axes.get_ylim() == pytest.approx((-0.5 * scale[1], (n - 0.5) * scale[1]))
    assert f"components {right} and {up} of u" in axes.get_title()
    assert f"axis {third} = 3" in axes.get_title()
    assert axes.get_aspect() == pytest.approx(1 if unit == "mm" else spacing[up] / spacing[right])


def test_background_image_fills_the_axes():
    image = noise(9, 11)
    figure = maps.draw_deformed_grid(np.zeros((2, 9, 11)), [2.0, 1.0], unit="mm", image=image)
    (shown,) = figure.axes[0].images
    np.testing.assert_array_equal(shown.get_array(), image.T)
    assert shown.get_extent() == [-1.0, 17.0, -0.5, 10.5]
    assert figure.axes[0].get_xlim() == (-1.0, 17.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": (0, 3)}, r"plane=\[0, 3\] must be two of the axes 0 to 2"),
        ({"plane": (1, 1)}, r"plane=\[1, 1\]"),
        ({"at": 9}, "at=9 must be an index of axis 2, 0 to 8"),
        ({"unit": "cm"}, "unit=cm must be one of mm, voxels"),
    ],
)
def test_unknown_planes_and_units_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        maps.draw_deformed_grid(np.zeros((3, 7, 8, 9)), [1.0] * 3, **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_montage_shows_equally_spaced_slices_on_one_scale(axis):
    volume = noise(7, 8, 9)
    figure = maps.draw_montage(volume, [1, 1, 2], axis, count=4, columns=3)
    chosen = np.linspace(0, volume.shape[axis] - 1, 4).round().astype(int)
    assert [axes.get_title() for axes in figure.axes] == [f"axis {axis} = {i}" for i in chosen]
    for axes, index in zip(figure.axes, chosen, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), volume.take(index, axis).T)
    assert len({axes.images[0].get_clim() for axes in figure.axes}) == 1
    assert len(maps.draw_montage(volume, [1, 1, 2], axis, count=99).axes) == volume.shape[axis]


def test_montage_colors_labels_and_names_them_in_the_legend():
    volume, labels = noise(7, 8, 9), np.zeros((7, 8, 9), int)
    labels[2:5, 2:5, :] = 4
    labels[5:, 5:, :] = 2
    figure = maps.draw_montage(volume, [1, 1, 1], count=2, labels=labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["label 2", "label 4"]
    overlay = figure.axes[0].images[1].get_array()
    colours = views.assign_label_colors([2, 4])
    for value in (2, 4):
        here = value == labels[:, :, 0].T
        np.testing.assert_allclose(overlay[here], [(*colours[value], 0.5)] * here.sum())
    assert not overlay[labels[:, :, 0].T == 0].any()


def test_more_labels_than_colors_have_no_legend():
    labels = np.arange(7 * 8 * 9).reshape(7, 8, 9) % 9
    assert not maps.draw_montage(noise(7, 8, 9), [1, 1, 1], count=2, labels=labels).legends


def test_montage_of_a_2d_image_is_refused():
    with pytest.raises(UserError, match="needs a 3D volume"):
        maps.draw_montage(noise(9, 11), [1, 1])
