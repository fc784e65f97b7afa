"""Scores by structure: tables, box plots and bars."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import PathPatch, Rectangle

from regnet_lab.cli import report
from regnet_lab.errors import UserError
from regnet_lab.evaluation import per_label, per_label_plots
from tests.helpers import ROOT

CASES = ["a", "b", "c", "d", "e"]


def write_evaluation(folder, methods, labels=(3, 12, 101), cases=CASES, seed=0):
    """Write an evaluation folder and return its per-label table."""
    rng = np.random.default_rng(seed)
    rows = [
        {"case": case, "method": method, "label": label, "dice": rng.uniform(0.3, 0.9), "asd_mm": 1}
        for method in methods
        for case in cases
        for label in labels
    ]
    folder.mkdir(parents=True)
    table = pd.DataFrame(rows)
    table.to_csv(folder / "labels.csv", index=False)
    means = table.groupby(["case", "method"], sort=False).mean().drop(columns="label")
    means.reset_index().to_csv(folder / "cases.csv", index=False)
    return table


def read_structures(folder, groups=None):
    return per_label.average_by_structure(per_label.read_label_scores([folder]), groups)


# --- scores by structure


def test_evaluations_are_joined_with_one_identity_and_distinct_method_names(tmp_path):
    first = write_evaluation(tmp_path / "run1", ["identity", "net"], seed=1)
    write_evaluation(tmp_path / "run2", ["identity", "net", "other"], seed=2)
    table = per_label.read_label_scores([tmp_path / "run1", tmp_path / "run2"])
    assert per_label.list_methods(table) == ["identity", "net (run1)", "net (run2)", "other"]
    identity = table[table["method"] == "identity"]
    expected = first[first["method"] == "identity"]["dice"]
    np.testing.assert_allclose(identity["score"], expected)
    assert table.groupby("method").size().tolist() == [15] * 4


def test_a_group_averages_the_defined_scores_of_its_labels(tmp_path):
    table = write_evaluation(tmp_path / "run", ["net"])
    table.loc[(table["case"] == "a") & (table["label"] == 3), "dice"] = np.nan
    table.to_csv(tmp_path / "run" / "labels.csv", index=False)
    groups = {"small": [3, 12], "large": [101], "none": [5]}
    structures = read_structures(tmp_path / "run", groups)
    wide = structures.pivot(index="case", columns="structure", values="score")
    assert list(wide) == ["large", "small"]
    by_label = table.pivot(index="case", columns="label", values="dice")
    assert wide.loc["a", "small"] == pytest.approx(by_label.loc["a", 12])
    assert wide.loc["b", "small"] == pytest.approx(by_label.loc["b", [3, 12]].mean())
    np.testing.assert_allclose(wide["large"], by_label[101])


def test_statistics_equal_numpy_in_the_order_of_labels_with_identity_first(tmp_path):
    table = write_evaluation(tmp_path / "run", ["net", "identity"], labels=(101, 3))
    statistics = per_label.compute_structure_statistics(read_structures(tmp_path / "run"))
    assert list(statistics.index) == [(s, m) for s in ("3", "101") for m in ("identity", "net")]
    values = table[(table["method"] == "net") & (table["label"] == 101)]["dice"]
    row = statistics.loc[("101", "net")]
    expected = [5, values.mean(), values.std(ddof=0), values.median()]
    assert row[["cases", "mean", "std", "median"]].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["dkt31_regions", "lpba_regions"])
def test_label_groups_of_the_configuration_have_names(name):
    groups = per_label.read_label_groups(ROOT / f"conf/data/labels/{name}.yaml")
    assert list(groups)[:2] == ["frontal", "parietal"]
    assert {"dkt31_regions": 1012, "lpba_regions": 34}[name] in groups["frontal"]


def test_a_group_without_a_name_is_named_by_its_key(tmp_path):
    text = "# all\ncortex: {labels: [1, 2]}\n3: {name: deep, labels: [4]}\n"
    (tmp_path / "groups.yaml").write_text(text)
    assert per_label.read_label_groups(tmp_path / "groups.yaml") == {"cortex": [1, 2], "deep": [4]}


@pytest.mark.parametrize(
    "text", ["a: 3", "- 1", "a: [x]", "a: [", "", "a: [1, 2]", "a: {name: b}", "a: {labels: [x]}"]
)
def test_invalid_label_groups_are_refused(text, tmp_path):
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(UserError, match=r"groups\.yaml"):
        per_label.read_label_groups(tmp_path / "groups.yaml")


def test_missing_labels_or_metrics_and_different_cases_are_refused(tmp_path):
    write_evaluation(tmp_path / "run", ["net"])
    write_evaluation(tmp_path / "strange", ["net"], cases=["x"])
    write_evaluation(tmp_path / "unlabelled", ["net"])
    (tmp_path / "unlabelled" / "labels.csv").unlink()
    with pytest.raises(UserError, match="nowhere: holds no evaluation"):
        per_label.read_label_scores([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"unlabelled: there is no labels\.csv"):
        per_label.read_label_scores([tmp_path / "unlabelled"])
    with pytest.raises(UserError, match="has no column 'hd'; it has case, method, label, dice"):
        per_label.read_label_scores([tmp_path / "run"], "hd")
    with pytest.raises(UserError, match="have different cases"):
        per_label.read_label_scores([tmp_path / "run", tmp_path / "strange"])
    with pytest.raises(UserError, match="none of their labels was scored"):
        read_structures(tmp_path / "run", {"a": [77]})


# --- box plots and bars


@pytest.fixture
def table(tmp_path):
    write_evaluation(tmp_path / "run", ["net", "identity"])
    return read_structures(tmp_path / "run")


def test_every_structure_has_a_box_for_each_method_between_its_quartiles(table):
    figure = per_label_plots.draw_box_plots(table)
    (axes,) = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
    order = [(m, s) for m in ("identity", "net") for s in ("3", "12", "101")]
    assert len(boxes) == len(order)
    for (method, structure), box in zip(order, boxes, strict=True):
        rows = table[(table["method"] == method) & (table["structure"] == structure)]
        low, high = rows["score"].quantile([0.25, 0.75])
        bounds = box.get_path().get_extents()
        assert (bounds.y0, bounds.y1) == pytest.approx((low, high))
        x = ["3", "12", "101"].index(structure)
        assert x - 0.5 < bounds.x0 < bounds.x1 < x + 0.5
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "12", "101"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["identity", "net"]
    assert axes.get_ylabel() == "Dice"


def test_bars_are_as_long_as_the_means_with_the_first_structure_on_top(table):
    (axes,) = per_label_plots.draw_bar_chart(table).axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    means = per_label.compute_structure_statistics(table)["mean"]
    order = [(s, m) for m in ("identity", "net") for s in ("3", "12", "101")]
    assert [bar.get_width() for bar in bars] == pytest.approx([means[key] for key in order])
    error_bars = [line for c in axes.collections for line in c.get_segments()]
    widths = [line[1][0] - line[0][0] for line in error_bars]
    deviations = per_label.compute_structure_statistics(table)["std"]
    assert widths == pytest.approx([2 * deviations[key] for key in order])
    assert bars[0].get_y() < bars[1].get_y()
    assert axes.yaxis_inverted()


def test_a_structure_that_a_method_lacks_leaves_its_position_empty(table):
    fewer = table[(table["method"] != "net") | (table["structure"] != "12")]
    (axes,) = per_label_plots.draw_bar_chart(fewer).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert np.isnan(widths[4])
    assert np.isfinite(widths[3])
    per_label_plots.draw_box_plots(fewer).canvas.draw()


def test_the_command_writes_figures_and_numbers_by_group(tmp_path):
    write_evaluation(tmp_path / "run", ["net", "identity"])
    groups = tmp_path / "groups.yaml"
    groups.write_text("1: {name: small, labels: [3, 12]}\n2: {name: large, labels: [101]}\n")
    arguments = ["--groups", str(groups), "--output", str(tmp_path)]
    report.main(["per-label", str(tmp_path / "run"), *arguments])
    structures = pd.read_csv(tmp_path / "dice_structures.csv")
    assert structures["structure"].tolist() == ["small", "small", "large", "large"]
    for name in ("dice_boxes.png", "dice_bars.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_command_names_errors_in_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["per-label"])
    assert "usage:" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="holds no evaluation"):
        report.main(["per-label", str(tmp_path)])
