import io
import json
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection
from rich.console import Console

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.metrics import tables
from regnet_lab.ops.pairs import registered
from regnet_lab.utils import atomic_io as files
from regnet_lab.visualization import curves, layout, panels, slices, views

SHAPES = [(9, 11), (7, 8, 9)]
LABELS = ("fixed_labels", "moving_labels")
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
    return registered(pair, [noise(2, len(shape), *shape, seed=3) * scale])


def titled(figure, start):
    return [axes for axes in figure.axes if axes.get_title().startswith(start)]


# --- slices


@pytest.mark.parametrize("shape", SHAPES)
def test_every_plane_through_a_voxel_holds_that_voxel_and_the_right_axes(shape):
    volume = noise(3, *shape).numpy()
    through = tuple(n // 3 for n in shape)
    for plane in slices.planes(through):
        picture = slices.cut(volume, plane)
        right, up = plane.axes
        assert right < up
        assert picture.shape == (3, shape[right], shape[up])
        here = picture[:, through[right], through[up]]
        np.testing.assert_array_equal(here, volume[(slice(None), *through)])
    assert len(slices.planes(through)) == {2: 1, 3: 3}[len(shape)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_is_that_of_the_mass_and_the_middle_without_any(shape):
    weight = np.zeros(shape)
    weight[(1,) * len(shape)] = 3
    weight[(1,) * (len(shape) - 1) + (5,)] = 1
    assert slices.centre(weight) == (1,) * (len(shape) - 1) + (2,)
    assert slices.centre(np.zeros(shape)) == tuple(n // 2 for n in shape)
    assert slices.centre(np.full(shape, np.nan)) == tuple(n // 2 for n in shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_translation_shifts_every_grid_line_by_its_components_in_the_plane(shape):
    shift = np.array([0.5, -2.0, 3.25])[: len(shape)]
    u = np.broadcast_to(shift.reshape(-1, *[1] * len(shape)), (len(shape), *shape))
    steps = [2, 3, 4][: len(shape)]
    for plane in slices.planes([n // 2 for n in shape]):
        lines = slices.grid_lines(u, plane, steps)
        still = slices.grid_lines(np.zeros_like(u), plane, steps)
        for line, before in zip(lines, still, strict=True):
            np.testing.assert_allclose(
                line - before, np.tile(shift[list(plane.axes)], (len(line), 1))
            )


def test_grid_lines_of_no_displacement_are_the_regular_ones_first_those_that_run_up():
    lines = slices.grid_lines(np.zeros((2, 5, 4)), slices.Plane((0, 1), (0, 0)), [2, 3])
    upward, rightward = lines[:3], lines[3:]
    assert [line[0, 0] for line in upward] == [0, 2, 4]
    assert all(np.ptp(line[:, 0]) == 0 and np.ptp(line[:, 1]) == 3 for line in upward)
    assert [line[0, 1] for line in rightward] == [0, 3]
    assert all(np.ptp(line[:, 1]) == 0 and np.ptp(line[:, 0]) == 4 for line in rightward)


def test_grid_lines_follow_a_displacement_that_varies():
    u = noise(3, 7, 8, 9).numpy()
    plane = slices.Plane((1, 2), (4, 0, 0))
    line = slices.grid_lines(u, plane, [1, 3, 2])[2]  # the third that runs up is at 6 of axis 1
    expected = np.stack([6 + u[1, 4, 6, :], np.arange(9) + u[2, 4, 6, :]], axis=1)
    np.testing.assert_allclose(line, expected, rtol=1e-6)


def test_grid_steps_are_square_in_millimetres_and_never_zero():
    assert slices.grid_steps([40, 80], [2.0, 1.0], lines=10) == [4, 8]
    assert slices.grid_steps([100, 100, 5], [1.0, 1.0, 20.0]) == [5, 5, 1]


# --- figures


def test_the_overlay_is_red_exactly_where_the_determinant_is_not_positive():
    determinant = np.array([[1.0, 0.0, -2.0], [np.nan, 1e-6, -1e-6]])
    overlay = views.fold_overlay(determinant)
    red = [[False, True, True], [False, False, True]]
    np.testing.assert_array_equal(overlay[..., 3] == 1, red)
    np.testing.assert_array_equal(overlay[..., 3] == 0, np.logical_not(red))
    assert (overlay[red] == views.FOLD).all()


def test_windows_ignore_what_is_not_finite_and_never_vanish():
    values = np.array([np.nan, -np.inf, 0.0, -3.0, 2.0])
    assert layout.window(values) == pytest.approx((-3, 2), rel=0.05)
    assert layout.symmetric(values) == pytest.approx((-3, 3), rel=0.05)
    assert layout.symmetric(np.zeros(4)) == (-1, 1)
    assert layout.window(np.full(4, np.nan)) == (0, 1)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_panel_shows_every_view_in_every_plane_and_labels_only_where_there_are(shape, labels):
    pair = make_pair(shape, labels)
    figure = panels.panel(pair, make_registration(pair))
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
    planes, colour_bars = len(slices.planes(shape)), 4
    assert len(figure.axes) == planes * len(names) + colour_bars
    assert "a <- b" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "det J ≤ 0" in legend[0]
    assert len(legend) == (3 if labels else 1)
    assert figure.get_size_inches()[0] * figure.dpi <= 1601
    figure.canvas.draw()


@pytest.mark.parametrize("shape", SHAPES)
def test_images_have_the_lower_axis_to_the_right_the_other_up_and_millimetres_for_aspect(shape):
    pair = make_pair(shape, labels=False)
    figure = panels.panel(pair, make_registration(pair))
    (axes,) = titled(figure, "fixed\n")
    volume = pair["fixed"][0, 0].numpy()
    plane = slices.planes(slices.centre(volume - volume.min()))[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), slices.cut(volume, plane).T)
    assert axes.images[0].origin == "lower"
    assert axes.get_ylim() == (-0.5, shape[1] - 0.5)
    assert axes.get_aspect() == pytest.approx(2)  # axis 1 has 2 mm, axis 0 has 1 mm


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_share_one_symmetric_scale(shape):
    pair = make_pair(shape)
    figure = panels.panel(pair, make_registration(pair))
    before, after = (
        titled(figure, f"fixed - {name}")[0].images[0] for name in ("moving", "warped")
    )
    assert before.get_clim() == after.get_clim()
    assert before.get_clim()[0] == -before.get_clim()[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_title_tells_the_share_of_folded_voxels_and_the_picture_where_they_are(shape):
    pair = make_pair(shape)
    registration = make_registration(pair)
    determinant = ops.jacobian_determinant(registration.displacement)[0].numpy()
    assert 0 < (determinant <= 0).mean() < 1
    (axes,) = titled(panels.panel(pair, registration), "log det J")
    assert f"{100 * (determinant <= 0).mean():.3g} %" in axes.get_title()
    plane = slices.planes(slices.centre(pair["fixed_labels"][0, 0].numpy() != 0))[0]
    folded = slices.cut(determinant, plane).T <= 0
    shown, overlay = (image.get_array() for image in axes.images)
    np.testing.assert_array_equal(overlay[..., 3] == 1, folded)
    expected = np.log(slices.cut(determinant, plane).T[~folded])
    np.testing.assert_allclose(shown[~folded], expected, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_outlined_are_the_fixed_ones_and_the_moving_ones_seen_through_the_field(shape):
    pair = make_pair(shape)
    block = torch.zeros(2, 1, *shape, dtype=torch.long)
    block[(..., *[slice(2, 5)] * len(shape))] = 3
    pair["moving_labels"] = block
    pair["fixed_labels"] = block.roll(-1, dims=2)
    shift = torch.zeros(2, len(shape), *shape)
    shift[:, 0] = 1
    fixed, warped = (
        contour.get_paths()[0].vertices
        for contour in titled(panels.panel(pair, registered(pair, [shift])), "labels")[
            0
        ].collections
    )
    np.testing.assert_array_equal(fixed, warped)
    assert (fixed.min(0) == [0.5, 1.5]).all()


@pytest.mark.parametrize("count", MANY_FIELDS, ids=len)
@pytest.mark.parametrize("ndim", [2, 3])
def test_iterations_have_a_column_for_each_field_up_to_nine_first_and_last_included(ndim, count):
    pair = make_pair((12, 10, 9)[:ndim])
    fields = [noise(2, ndim, *[n] * ndim, seed=n) for n in count]
    figure = panels.iterations(pair, registered(pair, fields))
    columns = [axes.get_title() for axes in titled(figure, "field")]
    assert len(columns) == min(len(count), 9)
    assert columns[0].startswith(f"field 1 of {len(count)}")
    assert columns[-1].startswith(f"field {len(count)} of {len(count)}")
    assert len(titled(figure, "fixed - warped")) == len(titled(figure, "grid")) == len(columns)


@pytest.mark.parametrize("shape", [(12, 8), (12, 8, 4)])
def test_iterations_carry_a_coarse_translation_to_the_voxels_of_the_fixed_grid(shape):
    pair = make_pair(shape)
    coarse = torch.zeros(2, len(shape), *[n // 2 for n in shape])
    coarse[:, 0] = 1  # one coarse voxel is two fine ones
    figure = panels.iterations(pair, registered(pair, [coarse, torch.zeros(2, len(shape), *shape)]))
    moved, still = (
        next(c for c in axes.collections if isinstance(c, LineCollection)).get_segments()
        for axes in titled(figure, "grid")
    )
    for there, here in zip(moved, still, strict=True):
        np.testing.assert_allclose(there - here, np.tile([2.0, 0.0], (len(here), 1)), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_network_that_has_diverged_or_does_nothing_still_gives_a_picture(shape):
    pair = make_pair(shape)
    for u in (torch.full((2, len(shape), *shape), torch.nan), torch.zeros(2, len(shape), *shape)):
        registration = registered(pair, [u.requires_grad_()])
        panels.panel(pair, registration).canvas.draw()
        panels.iterations(pair, registration).canvas.draw()


def test_figures_leave_the_global_state_of_matplotlib_alone():
    pair = make_pair((9, 11))
    before = dict(mpl.rcParams)
    panels.panel(pair, make_registration(pair)).canvas.draw()
    assert dict(mpl.rcParams) == before
    code = (
        "import sys, regnet_lab.visualization.panels; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


# --- tables

DICE = {"identity": [0.5, 0.4, 0.6], "net | a": [0.8, 0.7, np.nan]}


@pytest.fixture
def records():
    rows = []
    for method in ("net | a", "identity"):
        for case, dice in zip("xyz", DICE[method], strict=True):
            values = {"seconds": 0.1, "dice": dice, "dice/1": dice - 0.1, "dice/12": dice + 0.1}
            rows.append({"case": case, "method": method, **values, "odd_thing": 12345.678})
    return [*rows, dict(rows[0], dice=0.0)]  # DDP saw x twice


def test_cases_have_one_row_for_each_method_and_case_and_no_labels(records):
    frame = tables.cases(records)
    assert list(zip(frame["method"], frame["case"], strict=True)) == [
        (method, case) for method in ("net | a", "identity") for case in "xyz"
    ]
    assert list(frame) == ["case", "method", "dice", "odd_thing", "seconds"]
    assert frame["dice"][0] == 0.8


def test_labels_are_one_row_for_each_case_method_and_label(records):
    records[0]["hd95_mm/12"] = 4.0
    frame = tables.labels(records)
    assert list(frame) == ["case", "method", "label", "dice", "hd95_mm"]
    assert len(frame) == 12
    row = frame[(frame["case"] == "x") & (frame["method"] == "net | a") & (frame["label"] == 12)]
    assert row[["dice", "hd95_mm"]].to_numpy().tolist() == [[pytest.approx(0.9), 4.0]]
    assert frame["hd95_mm"].isna().sum() == 11


def test_the_summary_has_identity_first_and_the_moments_numpy_finds_without_nan(records):
    table = tables.summary(records)
    assert list(table.index) == ["identity", "net | a"]
    assert table["cases"].tolist() == [3, 3]
    for method, values in DICE.items():
        assert table.loc[method, "dice_mean"] == pytest.approx(np.nanmean(values))
        assert table.loc[method, "dice_std"] == pytest.approx(np.nanstd(values))


def test_markdown_names_units_and_keeps_sensible_decimals(records):
    for record in records:
        record.update(hd95_mm=2.0, folds_percent=0.01, tre_mm=np.nan)
    lines = tables.markdown(tables.summary(records)).splitlines()
    assert len({len(line) for line in lines}) == 1
    head, _, identity, net = ([c.strip() for c in line.split(" | ")] for line in lines)
    names = ["Dice", "odd_thing", "HD95 (mm)", "folds (%)", "TRE (mm)", "seconds |"]
    assert head == ["| method", "cases", *names]
    cells = ["0.500 ± 0.082", "1.235e+04 ± 0", "2.00 ± 0.00", "0.010 ± 0.000", "-", "0.10 ± 0.00 |"]
    assert identity == ["| identity", "3", *cells]
    assert net[0] == r"| net \| a"


def test_the_terminal_table_says_the_same_and_shows_brackets_as_they_are(records):
    for record in records:
        record["method"] = record["method"].replace("net | a", "net[levels=3]")
        record["x[bold]"] = 1.0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.rich_table(tables.summary(records)))
    text = console.export_text()
    assert "net[levels=3]" in text
    assert "x[bold]" in text
    assert "0.750 ± 0.050" in text


def test_written_tables_read_back_and_nan_is_null(records, tmp_path):
    for record in records:
        record["tre_mm"] = np.nan
    folder = tmp_path / "new" / "report"
    tables.write(records, folder)
    assert sorted(os.listdir(folder)) == ["cases.csv", "labels.csv", "summary.json", "summary.md"]
    for name, frame in (("cases", tables.cases(records)), ("labels", tables.labels(records))):
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), frame)
    strict = {"parse_constant": lambda constant: pytest.fail(f"{constant} is not JSON")}
    summary = json.loads((folder / "summary.json").read_text(), **strict)
    assert summary["cases"] == 3
    assert summary["identity"]["dice"] == {
        "mean": pytest.approx(0.5),
        "std": pytest.approx(np.std(DICE["identity"])),
    }
    assert summary["net | a"]["tre_mm"] == {"mean": None, "std": None}


def test_a_report_without_labels_leaves_no_table_of_labels_not_even_an_old_one(records, tmp_path):
    tables.write(records, tmp_path)
    tables.write([{"case": "x", "method": "m", "rmse": 1.0}], tmp_path)
    assert not (tmp_path / "labels.csv").exists()
    assert len(pd.read_csv(tmp_path / "cases.csv")) == 1


def test_no_records_is_an_error_that_says_so(tmp_path):
    with pytest.raises(UserError, match="no case"):
        tables.write([], tmp_path)


# --- files


def test_a_file_is_replaced_whole_or_kept_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "first ± 1\n")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt cannot be written \(No space left"):
        files.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first ± 1\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_is_a_file_is_an_error_that_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt"):
        files.write_text(tmp_path / "file" / "a.txt", "text")


def test_curves_are_read_back_from_a_tensorboard_log(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "run" / "tensorboard")
    for step, value in enumerate([0.5, 0.6, 0.7]):
        writer.add_scalar("epoch", step, step, walltime=60.0 * step)
        writer.add_scalar("val/dice", value, step, walltime=60.0 * step)
    writer.close()
    minutes, values = curves.scalars(tmp_path / "run", "val/dice")
    assert minutes == pytest.approx([0, 1, 2])
    assert values == pytest.approx([0.5, 0.6, 0.7])
    (axes,) = curves.curves([str(tmp_path / "run")], "val/dice").axes
    assert axes.get_lines()[0].get_ydata() == pytest.approx(values)
    with pytest.raises(UserError, match="val/tre"):
        curves.scalars(tmp_path / "run", "val/tre")
    with pytest.raises(UserError, match="has no TensorBoard log"):
        curves.scalars(tmp_path, "val/dice")


def test_headers_are_what_readers_call_a_metric():
    names = ["hd95_mm", "mae_axis0_mm", "mae_1.5_to_4_mm", "folds_percent", "mine"]
    called = ["HD95 (mm)", "MAE axis0 (mm)", "MAE 1.5 to 4 (mm)", "folds (%)", "mine"]
    assert [tables.header(name) for name in names] == called
