"""The command line of the reports."""

import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from regnet_lab.cli import report

COMMANDS = ("leaderboard", "html", "sweep", "tradeoff", "per-label", "curves")


def test_without_arguments_the_help_lists_all_reports(capsys):
    report.main([])
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m regnet_lab.cli.report")
    assert [name for name in COMMANDS if name not in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_report_has_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        report.main([name, "--help"])
    text = capsys.readouterr().out
    _, example = text.split(f"example:\n  {report.PROGRAM} ")
    assert report.make_parser().parse_args(example.split()).run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_report_without_its_arguments_prints_the_usage(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main([name])
    assert "usage:" in capsys.readouterr().err


def test_the_terminal_table_has_a_column_per_method_if_all_fit_else_a_row():
    few = [["method", "Dice", "HD95 (mm)"], ["identity", "0.5 ± 0.1", "4 ± 1"]]
    eleven_methods = few + [[f"method {n}", "0.7 ± 0.1", "2 ± 1"] for n in range(9)]
    make_table = report.make_terminal_table
    assert [str(c.header) for c in make_table(few, 60).columns] == ["", "identity"]
    assert [str(c.header) for c in make_table(eleven_methods, 60).columns] == [
        "",
        "Dice",
        "HD95 (mm)",
    ]
    assert [str(c.header) for c in make_table(eleven_methods, 30).columns] == ["", "Dice"]
    assert make_table(eleven_methods, 30).row_count == 10


def test_the_report_of_a_sweep_is_printed(tmp_path, capsys):
    (tmp_path / "0").mkdir()
    (tmp_path / "0/job.json").write_text(json.dumps({"overrides": ["seed=1"], "error": "no"}))
    report.main(["sweep", str(tmp_path)])
    assert "failed: no" in capsys.readouterr().out
    assert (tmp_path / "sweep.csv").is_file()


def test_training_curves_are_drawn_from_the_logs_of_runs(tmp_path):
    with SummaryWriter(tmp_path / "run/tensorboard") as writer:
        for epoch in range(3):
            writer.add_scalar("epoch", epoch, epoch)
            writer.add_scalar("val/dice", 0.1 * epoch, epoch)
    figure = tmp_path / "curves.png"
    report.main(["curves", "val/dice", str(tmp_path / "run"), "--output", str(figure)])
    assert figure.read_bytes()[1:4] == b"PNG"
    with pytest.raises(SystemExit, match="val/loss"):
        report.main(["curves", "val/loss", str(tmp_path / "run"), "--output", str(figure)])
