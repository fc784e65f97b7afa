"""Plots of structures, folds, grids and slices: what stands in them."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch, Rectangle

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.evaluation import per_label, per_label_plots
from regnet_lab.visualization import maps, views
from regnet_lab.visualization.slices import centre, cut, planes

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
CASES = ["a", "b", "c", "d", "e"]


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).numpy()


def folder_of(path, methods, labels=(3, 12, 101), cases=CASES, seed=0):
    """An evaluation folder, and its table."""
    rng = np.random.default_rng(seed)
    rows = [
        {"case": case, "method": method, "label": label, "dice": rng.uniform(0.3, 0.9), "asd_mm": 1}
        for method in methods
        for case in cases
        for label in labels
    ]
    path.mkdir(parents=True)
    table = pd.DataFrame(rows)
    table.to_csv(path / "labels.csv", index=False)
    return table


# --- scores by structure


def test_folders_are_joined_identity_once_and_equal_names_told_apart(tmp_path):
    first = folder_of(tmp_path / "run1", ["identity", "net"], seed=1)
    folder_of(tmp_path / "run2", ["identity", "net", "other"], seed=2)
    table = per_label.scores([tmp_path / "run1", tmp_path / "run2"])
    names = ["identity", f"net ({tmp_path / 'run1'})", f"net ({tmp_path / 'run2'})", "other"]
    assert per_label.ordered(table) == names
    identity = table[table["method"] == "identity"]
    expected = first[first["method"] == "identity"]["dice"]
    np.testing.assert_allclose(identity["score"], expected)
    assert table.groupby("method").size().tolist() == [15] * 4


def test_groups_are_means_of_the_labels_that_a_case_has(tmp_path):
    table = folder_of(tmp_path / "run", ["net"])
    table.loc[(table["case"] == "a") & (table["label"] == 3), "dice"] = np.nan
    table.to_csv(tmp_path / "run" / "labels.csv", index=False)
    found = per_label.by_structure(
        per_label.scores([tmp_path / "run"]), {"small": [3, 12], "large": [101], "none": [5]}
    )
    wide = found.pivot(index="case", columns="structure", values="score")
    assert list(wide) == ["large", "small"]
    by_label = table.pivot(index="case", columns="label", values="dice")
    assert wide.loc["a", "small"] == pytest.approx(by_label.loc["a", 12])
    assert wide.loc["b", "small"] == pytest.approx(by_label.loc["b", [3, 12]].mean())
    np.testing.assert_allclose(wide["large"], by_label[101])


def test_statistics_are_those_of_numpy_in_the_order_of_labels_identity_first(tmp_path):
    table = folder_of(tmp_path / "run", ["net", "identity"], labels=(101, 3))
    found = per_label.statistics(per_label.by_structure(per_label.scores([tmp_path / "run"])))
    assert list(found.index) == [(s, m) for s in ("3", "101") for m in ("identity", "net")]
    values = table[(table["method"] == "net") & (table["label"] == 101)]["dice"]
    row = found.loc[("101", "net")]
    expected = [5, values.mean(), values.std(ddof=0), values.median()]
    assert row[["cases", "mean", "std", "median"]].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dkt31_regions", "lpba_regions"])
def test_groups_of_the_configuration_have_the_names_behind_them(name):
    groups = per_label.read_groups(f"conf/data/labels/{name}.yaml")
    assert list(groups)[:2] == ["frontal", "parietal"]
    assert {"dkt31_regions": 1012, "lpba_regions": 34}[name] in groups["frontal"]


def test_groups_without_a_remark_have_their_key_for_a_name(tmp_path):
    (tmp_path / "groups.yaml").write_text("# all\ncortex: [1, 2]\n3: [4] #  deep \n")
    assert per_label.read_groups(tmp_path / "groups.yaml") == {"cortex": [1, 2], "deep": [4]}


@pytest.mark.parametrize("text", ["a: 3", "- 1", "a: [x]", "a: [", ""])
def test_groups_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(UserError, match=r"groups\.yaml"):
        per_label.read_groups(tmp_path / "groups.yaml")


def test_a_folder_without_labels_another_metric_and_other_cases_are_refused(tmp_path):
    folder_of(tmp_path / "run", ["net"])
    folder_of(tmp_path / "strange", ["net"], cases=["x"])
    with pytest.raises(UserError, match=r"nowhere: there is no labels\.csv"):
        per_label.scores([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="has no column 'hd'; it has case, method, label, dice"):
        per_label.scores([tmp_path / "run"], "hd")
    with pytest.raises(UserError, match="judge different cases"):
        per_label.scores([tmp_path / "run", tmp_path / "strange"])
    with pytest.raises(UserError, match="none of their labels was judged"):
        per_label.by_structure(per_label.scores([tmp_path / "run"]), {"a": [77]})


# --- boxes and bars


@pytest.fixture
def table(tmp_path):
    folder_of(tmp_path / "run", ["net", "identity"])
    return per_label.by_structure(per_label.scores([tmp_path / "run"]))


def test_every_structure_has_a_box_for_each_method_between_its_quartiles(table):
    figure = per_label_plots.boxes(table)
    (axes,) = figure.axes
    drawn = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    order = [(m, s) for m in ("identity", "net") for s in ("3", "12", "101")]
    assert len(drawn) == len(order)
    for (method, structure), box in zip(order, drawn, strict=True):
        own = table[(table["method"] == method) & (table["structure"] == structure)]["score"]
        low, high = own.quantile([0.25, 0.75])
        bounds = box.get_path().get_extents()
        assert (bounds.y0, bounds.y1) == pytest.approx((low, high))
        place = ["3", "12", "101"].index(structure)
        assert place - 0.5 < bounds.x0 < bounds.x1 < place + 0.5
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "12", "101"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["identity", "net"]
    assert axes.get_ylabel() == "Dice"


def test_bars_are_as_long_as_the_means_the_first_structure_on_top(table):
    (axes,) = per_label_plots.bars(table).axes
    drawn = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    means = per_label.statistics(table)["mean"]
    order = [(s, m) for m in ("identity", "net") for s in ("3", "12", "101")]
    assert [bar.get_width() for bar in drawn] == pytest.approx([means[key] for key in order])
    spread = [line for c in axes.collections for line in c.get_segments()]
    widths = [line[1][0] - line[0][0] for line in spread]
    deviations = per_label.statistics(table)["std"]
    assert widths == pytest.approx([2 * deviations[key] for key in order])
    assert drawn[0].get_y() < drawn[1].get_y()
    assert axes.yaxis_inverted()


def test_a_structure_that_a_method_lacks_leaves_its_place_empty(table):
    fewer = table[(table["method"] != "net") | (table["structure"] != "12")]
    (axes,) = per_label_plots.bars(fewer).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert np.isnan(widths[4])
    assert np.isfinite(widths[3])
    per_label_plots.boxes(fewer).canvas.draw()


def test_the_command_writes_pictures_and_numbers_by_group(tmp_path, monkeypatch):
    folder_of(tmp_path / "run", ["net", "identity"])
    (tmp_path / "groups.yaml").write_text("1: [3, 12] # small\n2: [101] # large\n")
    monkeypatch.setattr(
        sys,
        "argv",
        ["x", str(tmp_path / "run"), f"groups={tmp_path}/groups.yaml", f"out={tmp_path}"],
    )
    per_label_plots.main()
    found = pd.read_csv(tmp_path / "dice_structures.csv")
    assert found["structure"].tolist() == ["small", "small", "large", "large"]
    for name in ("dice_boxes.png", "dice_bars.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_command_tells_what_is_wrong_in_a_sentence(tmp_path, monkeypatch):
    for arguments, told in (([], "usage:"), ([str(tmp_path)], r"there is no labels\.csv")):
        monkeypatch.setattr(sys, "argv", ["overlap", *arguments])
        with pytest.raises(SystemExit, match=told):
            per_label_plots.main()


# --- maps


@SHAPES
def test_the_folding_map_is_red_where_the_determinant_is_not_positive_and_counts_them(shape):
    u = 1.5 * noise(len(shape), *shape)
    image = noise(*shape, seed=1)
    folded = ops.jacobian_determinant(torch.from_numpy(u)[None])[0].numpy() <= 0
    figure = maps.folding_map(u, [1.0] * len(shape), image)
    (title,) = {a.get_title() for a in figure.axes if a.get_title().startswith("folds\n")}
    assert title == f"folds\n{folded.sum()} of {folded.size} voxels"
    places = planes(centre(folded))
    shown = [axes for axes in figure.axes if len(axes.images) == 2][::2]
    for axes, plane in zip(shown, places, strict=True):
        grey, red = (image.get_array() for image in axes.images)
        np.testing.assert_array_equal(grey, cut(image, plane).T)
        np.testing.assert_array_equal(red[..., 3] == 1, cut(folded, plane).T)
        assert (red[red[..., 3] == 1] == views.FOLD).all()
    assert "det J ≤ 0" in figure.legends[0].get_texts()[0].get_text()


def test_a_map_without_folds_has_no_red_and_needs_no_image():
    figure = maps.folding_map(np.zeros((2, 9, 11), np.float32), [1.0, 1.0])
    red = figure.axes[0].images[1].get_array()
    assert not red.any()
    assert (
        figure.axes[0].images[0].to_rgba(figure.axes[0].images[0].get_array())[..., :3] == 1
    ).all()


@pytest.mark.parametrize("unit", ["voxels", "mm"])
@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2), (2, 1)])
def test_the_deformed_grid_has_the_components_of_the_plane_in_the_unit_chosen(plane, unit):
    spacing = [1.0, 2.0, 4.0]
    u = noise(3, 12, 10, 9)
    right, up = sorted(plane)
    (third,) = {0, 1, 2} - {*plane}
    figure = maps.deformed_grid(u, spacing, plane, at=3, every=4, unit=unit)
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


def test_an_image_behind_the_grid_fills_the_axes():
    image = noise(9, 11)
    figure = maps.deformed_grid(np.zeros((2, 9, 11)), [2.0, 1.0], unit="mm", image=image)
    (shown,) = figure.axes[0].images
    np.testing.assert_array_equal(shown.get_array(), image.T)
    assert shown.get_extent() == [-1.0, 17.0, -0.5, 10.5]
    assert figure.axes[0].get_xlim() == (-1.0, 17.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"plane": (0, 3)}, r"plane=\[0, 3\] must be two of the axes 0 to 2"),
        ({"plane": (1, 1)}, r"plane=\[1, 1\]"),
        ({"at": 9}, "at=9 must be an index of axis 2, 0 to 8"),
        ({"unit": "cm"}, "unit=cm must be one of mm, voxels"),
    ],
)
def test_a_plane_or_unit_that_is_none_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        maps.deformed_grid(np.zeros((3, 7, 8, 9)), [1.0] * 3, **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_montage_shows_equally_spaced_slices_on_one_scale_first_and_last_included(axis):
    volume = noise(7, 8, 9)
    figure = maps.montage(volume, [1, 1, 2], axis, count=4, columns=3)
    chosen = np.linspace(0, volume.shape[axis] - 1, 4).round().astype(int)
    assert [axes.get_title() for axes in figure.axes] == [f"axis {axis} = {i}" for i in chosen]
    for axes, index in zip(figure.axes, chosen, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), volume.take(index, axis).T)
    assert len({axes.images[0].get_clim() for axes in figure.axes}) == 1
    assert len(maps.montage(volume, [1, 1, 2], axis, count=99).axes) == volume.shape[axis]


def test_labels_of_a_montage_are_colours_named_in_the_legend():
    volume, labels = noise(7, 8, 9), np.zeros((7, 8, 9), int)
    labels[2:5, 2:5, :] = 4
    labels[5:, 5:, :] = 2
    figure = maps.montage(volume, [1, 1, 1], count=2, labels=labels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["label 2", "label 4"]
    overlay = figure.axes[0].images[1].get_array()
    colours = views.label_colours([2, 4])
    for value in (2, 4):
        here = value == labels[:, :, 0].T
        np.testing.assert_allclose(overlay[here], [(*colours[value], 0.5)] * here.sum())
    assert not overlay[labels[:, :, 0].T == 0].any()


def test_more_labels_than_a_legend_has_room_for_have_none():
    labels = np.arange(7 * 8 * 9).reshape(7, 8, 9) % 9
    assert not maps.montage(noise(7, 8, 9), [1, 1, 1], count=2, labels=labels).legends


def test_a_montage_of_a_picture_is_refused():
    with pytest.raises(UserError, match="needs a 3D volume"):
        maps.montage(noise(9, 11), [1, 1])
