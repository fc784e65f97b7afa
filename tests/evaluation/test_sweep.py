"""The report of a sweep: table and parallel coordinates."""

import json
import math

import pandas as pd
import pytest

from regnet_lab.errors import UserError
from regnet_lab.evaluation import sweep

JOBS = [  # overrides, value
    (["training_optimizer.lr=1e-4", "model=faim", "threads=1"], 0.5),
    (["training_optimizer.lr=1e-2", "model=gradirn", "threads=1"], 0.7),
    (["training_optimizer.lr=1e-3", "model=voxelmorph", "threads=1"], 0.6),
    (["training_optimizer.lr=1e-1", "model=faim", "threads=1"], None),
]


@pytest.fixture
def sweep_folder(tmp_path):
    for number, (overrides, value) in enumerate(JOBS):
        folder = tmp_path / str(number)
        folder.mkdir()
        job = {"overrides": overrides, "error": None if value else "it diverged"}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        if value:
            result = {"monitor": "val/dice", "value": value, "best": value + 0.1, "steps": 9}
            result["metrics"] = {"val/dice": value, "val/tre_mm": 2.0}
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return tmp_path


def read_markdown(path):
    rows = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_table_has_the_varied_settings_and_the_results(sweep_folder):
    table = sweep.write_sweep_report(sweep_folder)
    assert table.attrs["varied"] == ["training_optimizer.lr", "model"]
    assert table["training_optimizer.lr"].tolist() == [1e-4, 1e-2, 1e-3, 1e-1]
    written = pd.read_csv(sweep_folder / "sweep.csv")
    assert written["val/tre_mm"].tolist()[:3] == [2.0] * 3
    rows = read_markdown(sweep_folder / "sweep.md")
    assert rows[0] == ["job", "training_optimizer.lr", "model", "val/dice", "best", "steps"]
    assert rows[2] == ["0", "0.0001", "faim", "0.5000", "0.6000", "9"]
    assert rows[3][:4] == ["**1**", "**0.01**", "**gradirn**", "**0.7000**"]
    assert "failed: it diverged" in rows[5]
    assert "**2**" not in rows[4]
    sweep.write_sweep_report(sweep_folder, "min")
    assert "**0**" in (sweep_folder / "sweep.md").read_text(encoding="utf-8")


def test_parallel_coordinates_show_every_finished_job_on_every_axis(sweep_folder):
    table = sweep.tabulate_sweep(sweep_folder)
    figure = sweep.draw_parallel_coordinates(table, table.attrs["varied"])
    axes, color_bar = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_label()[:3] == "job"}
    assert set(lines) == {"job 0", "job 1", "job 2"}
    # lr is logarithmic, models are sorted by name, the monitor is linear
    heights = {"job 0": [0, 0, 0], "job 1": [1, 0.5, 1], "job 2": [0.5, 1, 0.5]}
    for job, expected in heights.items():
        assert lines[job].get_ydata() == pytest.approx(expected)
    widths = {job: line.get_linewidth() for job, line in lines.items()}
    assert max(widths, key=widths.get) == "job 1"
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "training_optimizer.lr",
        "model",
        "val/dice",
    ]
    tick_labels = {text.get_text(): tuple(text.xy) for text in axes.texts}
    assert tick_labels["gradirn"] == (1, 0.5)
    assert tick_labels["0.01"] == (0, 1)
    assert axes.get_title() == "3 jobs, 1 without a value"
    assert color_bar.get_ylabel() == "val/dice"


def test_a_constant_lies_in_the_middle_and_small_ranges_are_linear():
    heights, ticks, labels = sweep.scale_axis(pd.Series([3.0, 3.0]))
    assert (heights.tolist(), ticks, labels) == ([0.5, 0.5], [0.5], ["3"])
    heights, _, _ = sweep.scale_axis(pd.Series([1.0, 2.0, 5.0]))
    assert heights.tolist() == [0, 0.25, 1]
    heights, ticks, labels = sweep.scale_axis(pd.Series([1.0, 10, 100, 1e3, 1e4, 1e5]))
    assert heights == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    for height, label in zip(ticks, labels, strict=True):
        assert math.log10(float(label)) / 5 == pytest.approx(height, abs=1e-3)


def test_a_folder_without_jobs_is_named(tmp_path):
    with pytest.raises(UserError, match="no job of a sweep"):
        sweep.tabulate_sweep(tmp_path)
