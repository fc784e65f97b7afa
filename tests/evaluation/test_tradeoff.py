"""Alignment against regularity from the evaluated runs of a sweep."""

import json

import pandas as pd
import pytest
from omegaconf import OmegaConf

from regnet_lab.cli import report
from regnet_lab.errors import UserError
from regnet_lab.evaluation.tradeoff import draw_tradeoff, read_tradeoff_table

KEY = "loss.folding.weight"
ROWS = [  # method, weight, Dice, SDlogJ, folds
    ("faim", 1e-3, 0.6, 0.1, 0.5),
    ("faim", 0.0, 0.7, 0.3, 2.0),
    ("faim, cycle", 0.0, 0.65, 0.2, 1.0),
]


@pytest.fixture
def evaluations(tmp_path):
    folders = []
    for k, (method, weight, *means) in enumerate(ROWS):
        run, folder = tmp_path / f"run{k}", tmp_path / f"evaluation{k}"
        run.mkdir()
        folder.mkdir()
        config = {"module": {"name": method}, "loss": {"folding": {"weight": weight}}}
        OmegaConf.save(config | {"output_dir": str(run)}, run / "config.yaml")
        (folder / "about.json").write_text(json.dumps({"method": method, "run": str(run)}))
        names = ["dice", "sdlogj", "folds_percent"]
        rows = [
            {"case": str(n), "method": method}
            | dict(zip(names, (mean * share for mean in means), strict=True))
            for n, share in enumerate((0.5, 1.5))
        ]
        rows += [{"case": "0", "method": "identity"} | dict.fromkeys(names, 9.0)]
        pd.DataFrame(rows).to_csv(folder / "cases.csv", index=False)
        folders.append(folder)
    return folders


def test_every_run_is_a_row_of_means_without_identity(evaluations):
    table = read_tradeoff_table(evaluations, KEY)
    assert list(table["method"]) == ["faim", "faim", "faim, cycle"]
    assert list(table[KEY]) == [0.0, 1e-3, 0.0]
    assert list(table["cases"]) == [2, 2, 2]
    assert table["dice"].tolist() == pytest.approx([0.7, 0.6, 0.65])
    assert table["folds_percent"].tolist() == pytest.approx([2.0, 0.5, 1.0])


def test_the_figure_shows_the_table(evaluations):
    figure = draw_tradeoff(read_tradeoff_table(evaluations, KEY), KEY)
    sdlogj, folds, weight, cost = figure.axes
    lines = [
        [
            [list(line.get_xdata().round(9)), list(line.get_ydata().round(9))]
            for line in panel.get_lines()
        ]
        for panel in (sdlogj, folds, weight, cost)
    ]
    assert lines[0] == [[[0.3, 0.1], [0.7, 0.6]], [[0.2], [0.65]]]
    assert lines[1] == [[[2.0, 0.5], [0.7, 0.6]], [[1.0], [0.65]]]
    assert lines[2] == [[[0.0, 1e-3], [0.7, 0.6]], [[0.0], [0.65]]]
    assert lines[3] == [[[0.0, 1e-3], [2.0, 0.5]], [[0.0], [1.0]]]
    assert sdlogj.get_xlabel() == "SDlogJ"
    assert folds.get_xlabel() == "folds (%)"
    assert sorted(text.get_text() for text in folds.texts) == ["0", "0", "0.001"]
    assert [t.get_text() for t in sdlogj.get_legend().get_texts()] == ["faim", "faim, cycle"]
    assert weight.get_xscale() == "symlog"


def test_the_command_writes_figure_and_table(evaluations, tmp_path):
    figure = tmp_path / "out.png"
    report.main(["tradeoff", KEY, *map(str, evaluations), "--output", str(figure)])
    assert figure.read_bytes()[1:4] == b"PNG"
    table = pd.read_csv(tmp_path / "out.csv")
    assert table[KEY].tolist() == [0.0, 1e-3, 0.0]


@pytest.mark.parametrize(
    ("key", "deleted", "message"),
    [
        ("loss.folds.weight", None, "loss.folds.weight"),
        ("loss.folding", None, "loss.folding"),
        (KEY, "evaluation0/cases.csv", "evaluation0"),
        (KEY, "evaluation0/about.json", "evaluation0"),
        (KEY, "run0/config.yaml", "run0"),
    ],
)
def test_missing_settings_and_files_are_named(key, deleted, message, evaluations, tmp_path):
    if deleted:
        (tmp_path / deleted).unlink()
    with pytest.raises(UserError, match=message):
        read_tradeoff_table(evaluations[:1], key)


def test_an_evaluation_of_several_methods_is_refused(evaluations):
    cases = pd.read_csv(evaluations[0] / "cases.csv")
    cases.loc[0, "method"] = "faim x2"
    cases.to_csv(evaluations[0] / "cases.csv", index=False)
    with pytest.raises(UserError, match=r"evaluation0: has several methods \(faim x2, faim\)"):
        read_tradeoff_table(evaluations, KEY)


def test_evaluations_with_different_metrics_have_no_figure(evaluations):
    table = read_tradeoff_table(evaluations, KEY)
    with pytest.raises(UserError, match=r"dice.*sdlogj"):
        draw_tradeoff(table.drop(columns="sdlogj"), KEY)
    table.loc[0, "dice"] = float("nan")
    with pytest.raises(UserError, match="common"):
        draw_tradeoff(table, KEY)
