"""Alignment against regularity from the evaluated runs of a sweep."""

import pandas as pd
import pytest
from omegaconf import OmegaConf

from regnet_lab.errors import UserError
from regnet_lab.evaluation.tradeoff import main, point, points, regularity

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
        OmegaConf.save(config, run / "config.yaml")
        OmegaConf.save({"run": str(run)}, folder / "evaluation_config.yaml")
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


def test_every_run_is_a_row_of_means_without_the_identity(evaluations):
    table = points(evaluations, KEY)
    assert list(table["method"]) == ["faim", "faim", "faim, cycle"]
    assert list(table[KEY]) == [0.0, 1e-3, 0.0]
    assert list(table["cases"]) == [2, 2, 2]
    assert table["dice"].tolist() == pytest.approx([0.7, 0.6, 0.65])
    assert table["folds_percent"].tolist() == pytest.approx([2.0, 0.5, 1.0])


def test_the_curves_show_the_table(evaluations):
    figure = regularity(points(evaluations, KEY), KEY)
    sdlogj, folds, weight, price = figure.axes
    drawn = [
        [
            [list(line.get_xdata().round(9)), list(line.get_ydata().round(9))]
            for line in panel.get_lines()
        ]
        for panel in (sdlogj, folds, weight, price)
    ]
    assert drawn[0] == [[[0.3, 0.1], [0.7, 0.6]], [[0.2], [0.65]]]
    assert drawn[1] == [[[2.0, 0.5], [0.7, 0.6]], [[1.0], [0.65]]]
    assert drawn[2] == [[[0.0, 1e-3], [0.7, 0.6]], [[0.0], [0.65]]]
    assert drawn[3] == [[[0.0, 1e-3], [2.0, 0.5]], [[0.0], [1.0]]]
    assert sdlogj.get_xlabel() == "SDlogJ"
    assert folds.get_xlabel() == "folds (%)"
    assert sorted(text.get_text() for text in folds.texts) == ["0", "0", "0.001"]
    assert [t.get_text() for t in sdlogj.get_legend().get_texts()] == ["faim", "faim, cycle"]
    assert weight.get_xscale() == "symlog"


def test_the_command_writes_picture_and_table(evaluations, tmp_path, monkeypatch):
    picture = tmp_path / "out.png"
    monkeypatch.setattr("sys.argv", ["regularity", KEY, str(picture), *map(str, evaluations)])
    main()
    assert picture.read_bytes()[1:4] == b"PNG"
    table = pd.read_csv(tmp_path / "out.csv")
    assert table[KEY].tolist() == [0.0, 1e-3, 0.0]


@pytest.mark.parametrize(
    ("key", "lost", "named"),
    [
        ("loss.folds.weight", None, "loss.folds.weight"),
        ("loss.folding", None, "loss.folding"),
        (KEY, "evaluation0/cases.csv", "evaluation0"),
        (KEY, "evaluation0/evaluation_config.yaml", "evaluation0"),
        (KEY, "run0/config.yaml", "run0"),
    ],
)
def test_what_is_missing_is_named(key, lost, named, evaluations, tmp_path):
    if lost:
        (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=named):
        point(evaluations[0], key)


def test_runs_judged_differently_have_no_curve(evaluations):
    table = points(evaluations, KEY)
    with pytest.raises(UserError, match=r"dice.*sdlogj"):
        regularity(table.drop(columns="sdlogj"), KEY)
    table.loc[0, "dice"] = float("nan")
    with pytest.raises(UserError, match="common"):
        regularity(table, KEY)
