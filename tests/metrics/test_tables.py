"""Per-case, per-label and summary tables."""

import io
import json
import os

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from regnet_lab.errors import UserError
from regnet_lab.metrics import tables

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
    frame = tables.build_case_table(records)
    assert list(zip(frame["method"], frame["case"], strict=True)) == [
        (method, case) for method in ("net | a", "identity") for case in "xyz"
    ]
    assert list(frame) == ["case", "method", "dice", "odd_thing", "seconds"]
    assert frame["dice"][0] == 0.8


def test_labels_are_one_row_for_each_case_method_and_label(records):
    records[0]["hd95_mm/12"] = 4.0
    frame = tables.build_label_table(records)
    assert list(frame) == ["case", "method", "label", "dice", "hd95_mm"]
    assert len(frame) == 12
    row = frame[(frame["case"] == "x") & (frame["method"] == "net | a") & (frame["label"] == 12)]
    assert row[["dice", "hd95_mm"]].to_numpy().tolist() == [[pytest.approx(0.9), 4.0]]
    assert frame["hd95_mm"].isna().sum() == 11


def test_the_summary_has_identity_first_and_the_moments_numpy_finds_without_nan(records):
    table = tables.summarize(records)
    assert list(table.index) == ["identity", "net | a"]
    assert table["cases"].tolist() == [3, 3]
    for method, values in DICE.items():
        assert table.loc[method, "dice_mean"] == pytest.approx(np.nanmean(values))
        assert table.loc[method, "dice_std"] == pytest.approx(np.nanstd(values))


def test_markdown_names_units_and_keeps_sensible_decimals(records):
    for record in records:
        record.update(hd95_mm=2.0, folds_percent=0.01, tre_mm=np.nan)
    lines = tables.summary_to_markdown(tables.summarize(records)).splitlines()
    assert len({len(line) for line in lines}) == 1
    head, _, identity, net = ([c.strip() for c in line.split(" | ")] for line in lines)
    names = ["Dice", "odd_thing", "HD95 (mm)", "folds (%)", "TRE (mm)", "seconds |"]
    assert head == ["| method", "cases", *names]
    cells = ["0.500 ± 0.082", "1.235e+04 ± 0", "2.00 ± 0.00", "0.010 ± 0.000", "-", "0.10 ± 0.00 |"]
    assert identity == ["| identity", "3", *cells]
    assert net[0] == r"| net \| a"


def test_the_terminal_table_equals_the_markdown_and_does_not_interpret_brackets(records):
    for record in records:
        record["method"] = record["method"].replace("net | a", "net[levels=3]")
        record["x[bold]"] = 1.0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.summary_to_rich(tables.summarize(records)))
    text = console.export_text()
    assert "net[levels=3]" in text
    assert "x[bold]" in text
    assert "0.750 ± 0.050" in text


def test_written_tables_read_back_and_nan_is_null(records, tmp_path):
    for record in records:
        record["tre_mm"] = np.nan
    folder = tmp_path / "new" / "report"
    tables.write_tables(records, folder)
    assert sorted(os.listdir(folder)) == ["cases.csv", "labels.csv", "summary.json", "summary.md"]
    for name, frame in (
        ("cases", tables.build_case_table(records)),
        ("labels", tables.build_label_table(records)),
    ):
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), frame)
    strict = {"parse_constant": lambda constant: pytest.fail(f"{constant} is not JSON")}
    summary = json.loads((folder / "summary.json").read_text(), **strict)
    assert summary["cases"] == 3
    assert summary["identity"]["dice"] == {
        "mean": pytest.approx(0.5),
        "std": pytest.approx(np.std(DICE["identity"])),
    }
    assert summary["net | a"]["tre_mm"] == {"mean": None, "std": None}


def test_a_report_without_labels_removes_an_earlier_table_of_labels(records, tmp_path):
    tables.write_tables(records, tmp_path)
    tables.write_tables([{"case": "x", "method": "m", "rmse": 1.0}], tmp_path)
    assert not (tmp_path / "labels.csv").exists()
    assert len(pd.read_csv(tmp_path / "cases.csv")) == 1


def test_no_records_is_an_error_that_says_so(tmp_path):
    with pytest.raises(UserError, match="no case"):
        tables.write_tables([], tmp_path)


def test_headers_are_display_names_with_units():
    names = ["hd95_mm", "mae_axis0_mm", "mae_1.5_to_4_mm", "folds_percent", "mine"]
    called = ["HD95 (mm)", "MAE axis0 (mm)", "MAE 1.5 to 4 (mm)", "folds (%)", "mine"]
    assert [tables.format_header(name) for name in names] == called
