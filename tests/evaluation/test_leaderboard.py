"""The leaderboard: its statistics, its file formats, and evaluations that cannot be compared."""

import html
import json
import logging
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from scipy import stats

from regnet_lab.errors import UserError
from regnet_lab.evaluation import leaderboard_tables, setup
from regnet_lab.evaluation.leaderboard import build_leaderboard
from regnet_lab.metrics import tables
from regnet_lab.training.callbacks import RunInfo
from tests.helpers import ROOT

CASES = [f"case_{n:02d}" for n in range(24)]


def make_scores(seed, dice, cases):
    rng = np.random.default_rng(seed)
    for case in cases:
        first, second = np.clip(dice + 0.05 * rng.normal(size=2), 0, 1)
        yield {
            "case": case, "dice": (first + second) / 2, "dice/1": first, "dice/2": second,
            "hd95_mm": 8 * (1 - first), "sdlogj": 0.1 * dice, "folds_percent": 0.2,
        }  # fmt: skip


def write_evaluation(folder, method, dice, seed=1, cases=CASES, before=0.5, run=None, **about):
    """Write an evaluation folder as the callbacks do."""
    records = [r | {"method": "identity"} for r in make_scores(0, before, cases)]
    model_scores = make_scores(seed, dice, cases)
    records += [r | {"method": method, "seconds": 0.5, "peak_mb": 100.0} for r in model_scores]
    tables.write_tables(records, folder)
    run_info = {"method": method, "run": run and str(run), "device": "a CPU, 1 thread"} | about
    (folder / "about.json").write_text(json.dumps(run_info))
    return folder


@pytest.fixture
def three(tmp_path):
    return [
        write_evaluation(tmp_path / "good", "good", 0.8, seed=1, parameters=1234567),
        write_evaluation(tmp_path / "bad", "bad", 0.6, seed=2, parameters=10),
        write_evaluation(tmp_path / "similar", "similar", 0.801, seed=3, parameters=99),
    ]


def test_statistics_equal_those_of_scipy_and_numpy(three):
    leaderboard = build_leaderboard(three, reference="good")
    frames = {
        path.name: (pd.read_csv(path / "cases.csv").query("method == @path.name").set_index("case"))
        for path in three
    }
    p = {}
    for name, frame in frames.items():
        row = leaderboard.loc[name]
        assert row["cases"] == len(CASES)
        assert row["dice_mean"] == pytest.approx(frame["dice"].mean())
        assert row["dice_sd"] == pytest.approx(frame["dice"].std(ddof=0))
        assert row["dice_median"] == pytest.approx(frame["dice"].median())
        assert row["dice_worst30"] == pytest.approx(frame["dice"].quantile(0.3))
        assert row["hd95_mm_worst30"] == pytest.approx(frame["hd95_mm"].quantile(0.7))
        assert row["dice_low"] < row["dice_mean"] < row["dice_high"]
        if name != "good":
            p[name] = stats.wilcoxon(frame["dice"] - frames["good"]["dice"]).pvalue
    small, large = sorted((p["bad"], p["similar"]))
    adjusted = {small: 2 * small, large: max(large, 2 * small)}
    for name in ("bad", "similar"):
        assert leaderboard.loc[name, "dice_p"] == pytest.approx(adjusted[p[name]])
    assert leaderboard.loc[["good", "identity"], "dice_p"].isna().all()
    assert leaderboard.attrs["reference"] == "good"


def test_costs_parameters_and_device_are_listed(three):
    leaderboard = build_leaderboard(three)
    assert leaderboard.loc["good", ["seconds", "peak_mb", "parameters"]].tolist() == [
        0.5,
        100,
        1234567,
    ]
    assert leaderboard.loc["good", "device"] == "a CPU, 1 thread"
    assert leaderboard.loc["identity", ["seconds", "parameters", "device"]].isna().all()


def test_identity_is_first_without_a_rank_and_the_others_follow_their_ranks(three):
    leaderboard = build_leaderboard(three)
    assert leaderboard.index[0] == "identity"
    assert np.isnan(leaderboard.loc["identity", "rank"])
    assert leaderboard["rank"][1:].is_monotonic_decreasing
    # dice, dice30, hd95: bad last; sdlogj: bad best, good next, similar last
    best, last, shared = 1.0, 0.1, 0.775
    assert leaderboard.loc["bad", "rank"] == pytest.approx((last**3 * best) ** 0.25)
    assert leaderboard.loc["good", "rank"] == pytest.approx((shared**3 * 0.55) ** 0.25)


def test_dice30_is_of_the_structures_with_least_overlap_before_registration(three):
    leaderboard = build_leaderboard(three)
    labels = pd.read_csv(three[0] / "labels.csv")
    before = labels[labels.method == "identity"].set_index(["case", "label"])["dice"]
    hard = before[before <= before.quantile(0.3)].index
    after = labels[labels.method == "good"].set_index(["case", "label"])["dice"]
    assert len(hard) == 15
    assert leaderboard.loc["good", "dice30_mean"] == pytest.approx(after[hard].mean())
    assert leaderboard.loc["identity", "dice30_mean"] < leaderboard.loc["identity", "dice_mean"]


def test_the_best_method_is_the_reference_unless_another_is_named(three):
    leaderboard = build_leaderboard(three)
    means = leaderboard["dice_mean"].drop("identity")
    assert leaderboard.attrs["reference"] == means.idxmax()
    with pytest.raises(UserError, match="reference=nobody is not one of good, bad, similar"):
        build_leaderboard(three, reference="nobody")


def test_all_evaluations_below_a_folder_are_read(tmp_path):
    write_evaluation(tmp_path / "sweep" / "0", "net", 0.7, seed=1, run=tmp_path / "runs" / "small")
    write_evaluation(tmp_path / "sweep" / "1", "net", 0.8, seed=2, run=tmp_path / "runs" / "large")
    leaderboard = build_leaderboard([tmp_path / "sweep"])
    assert set(leaderboard.index) == {"identity", "net (small)", "net (large)"}
    assert leaderboard.loc["net (large)", "dice_mean"] > leaderboard.loc["net (small)", "dice_mean"]


def test_evaluations_of_one_run_are_named_by_their_folders(tmp_path):
    for name in ("best", "last"):
        write_evaluation(tmp_path / name / "same", "net", 0.7, run=tmp_path / "run")
    assert set(build_leaderboard([tmp_path]).index) == {"identity", "net (best)", "net (last)"}


def test_repeated_folders_and_repeated_cases_count_once(three):
    leaderboard = build_leaderboard(three[:2])
    path = three[0] / "cases.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1], lines[-1]]) + "\n")
    again = build_leaderboard([three[0], three[1], str(three[0])])
    pd.testing.assert_frame_equal(again, leaderboard)


def test_the_user_can_name_a_method(three, tmp_path):
    odd = write_evaluation(tmp_path / "weight=0.1", "net", 0.7)
    leaderboard = build_leaderboard([f"ours={three[0]}", odd, three[1]])
    assert list(leaderboard.index[1:]) == [
        m for m in leaderboard.index if m in {"ours", "net", "bad"}
    ]
    assert leaderboard.loc["ours", "parameters"] == 1234567


@pytest.mark.parametrize("common", [False, True])
def test_different_cases_are_refused_or_left_out_with_a_warning(common, three, tmp_path, caplog):
    fewer = write_evaluation(tmp_path / "fewer", "fewer", 0.7)
    frame = pd.read_csv(fewer / "cases.csv")
    frame[frame["case"] != CASES[3]].to_csv(fewer / "cases.csv", index=False)
    if not common:
        with pytest.raises(UserError, match=r"good and .*fewer .*\(24 and 23, 23 in common\)"):
            build_leaderboard([*three, fewer])
        return
    with caplog.at_level(logging.WARNING):
        leaderboard = build_leaderboard([*three, fewer], common=True)
    assert "only the 23 cases that all have are compared" in caplog.text
    assert set(leaderboard["cases"]) == {23}
    good = pd.read_csv(three[0] / "cases.csv").query("method == 'good' and case != @CASES[3]")
    assert leaderboard.loc["good", "dice_mean"] == pytest.approx(good["dice"].mean())


def test_evaluations_without_common_cases_are_refused(three, tmp_path):
    evaluation = write_evaluation(tmp_path / "other", "other", 0.7, cases=["a", "b"])
    with pytest.raises(UserError, match="different cases"):
        build_leaderboard([*three, evaluation], common=True)


def test_evaluations_that_differ_before_registration_are_refused(three, tmp_path):
    evaluation = write_evaluation(tmp_path / "other", "other", 0.8, before=0.52)
    with pytest.raises(UserError, match=r"other: dice of case_\d\d without registration is"):
        build_leaderboard([*three, evaluation])


def test_identity_alone_is_a_leaderboard_without_ranks(tmp_path):
    tables.write_tables([r | {"method": "identity"} for r in make_scores(0, 0.5, CASES)], tmp_path)
    leaderboard = build_leaderboard([tmp_path])
    assert list(leaderboard.index) == ["identity"]
    assert np.isnan(leaderboard.loc["identity", "rank"])
    assert "0.5" in leaderboard_tables.to_markdown(leaderboard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cases.csv").unlink(), "good: holds no evaluation"),
        (lambda f: (f / "cases.csv").write_text(""), "good: cannot be read as an evaluation"),
        (
            lambda f: (f / "cases.csv").write_text("a,b\n1,2\n"),
            "good: cannot be read as an evaluation",
        ),
        (lambda f: (f / "about.json").write_text("{"), "good: cannot be read as an evaluation"),
    ],
)
def test_a_damaged_evaluation_is_named(damage, message, three):
    damage(three[0])
    with pytest.raises(UserError, match=message):
        build_leaderboard(three)
    with pytest.raises(UserError, match="Name the folders"):
        build_leaderboard([])


# --- file formats


def read_html_rows(page):
    """Return the rows of all tables of a page as text."""
    rows = re.findall("<tr>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(c) for c in re.findall("<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_all_file_formats_hold_the_same_numbers(three, tmp_path):
    leaderboard = build_leaderboard([f"a_b & <c>={three[0]}", *three[1:]])
    written = leaderboard_tables.write_leaderboard(leaderboard, tmp_path / "out")
    assert [p.name for p in written] == [f"leaderboard.{e}" for e in ("csv", "md", "tex", "html")]
    csv, md, tex, page = (p.read_text(encoding="utf-8") for p in written)
    csv_leaderboard = pd.read_csv(tmp_path / "out/leaderboard.csv", index_col="method")
    np.testing.assert_allclose(csv_leaderboard["dice_mean"], leaderboard["dice_mean"])
    row = leaderboard_tables.make_overview_table(leaderboard)[
        [*leaderboard.index].index("a_b & <c>") + 1
    ]
    mean, sd = leaderboard.loc["a_b & <c>", ["dice_mean", "dice_sd"]]
    assert row[2] == f"{mean:.3f} ± {sd:.3f}"
    assert row[-2:] == ["1,234,567", "a CPU, 1 thread"]
    assert row in read_html_rows(page)
    assert [
        c.strip() for c in next(x for x in md.splitlines() if "a_b" in x).split("|")[1:-1]
    ] == row
    assert r"a\_b \& $<$c>" in tex
    assert (
        tex.count(r"\begin{tabular}")
        == tex.count(r"\end{tabular}")
        == 1 + len(leaderboard_tables.list_metrics(leaderboard))
    )
    assert "a_b & <c>" in csv


def test_the_table_of_a_metric_has_all_statistics(three):
    leaderboard = build_leaderboard(three, reference="good")
    head, _, *rows = leaderboard_tables.make_metric_table(leaderboard, "dice")
    assert head == ["method", "mean", "sd", "median", "worst 30 %", "95 % from", "to", "p"]
    by_name = {row[0]: row for row in rows}
    assert by_name["bad"][-1] == "< 0.001"
    assert by_name["good"][-1] == "-"
    assert by_name["bad"][1] == f"{leaderboard.loc['bad', 'dice_mean']:.3f}"


def test_the_command_writes_the_leaderboard_and_names_errors_in_one_sentence(three, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "regnet_lab.cli.report", "leaderboard", *arguments],
            capture_output=True, encoding="utf-8", cwd=ROOT,
        )  # fmt: skip

    done = run(*map(str, three), "--reference", "good", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "against good" in " ".join(done.stdout.split())
    assert (tmp_path / "out/leaderboard.html").is_file()
    failed = run(str(tmp_path / "nowhere"))
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "nowhere: holds no evaluation" in failed.stderr


# --- run information


def test_an_evaluation_records_parameters_device_and_run(composed, tmp_path):
    cfg = composed(
        "evaluate", "model=voxelmorph_1", "data=synthetic", "ndim=2", "data.dataset.shape=16",
        "data.dataset.num_pairs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    module, data = setup.set_up_evaluation(cfg)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, inference_mode=False,
        callbacks=[RunInfo(str(tmp_path), "outputs/a run")], limit_test_batches=1,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.test(module, data.make_eval_dataloader("test"), verbose=False)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["parameters"] == sum(p.numel() for p in module.model.parameters()) > 0
    assert about["run"] == "outputs/a run"
    assert f"{torch.get_num_threads()} thread" in about["device"]


# --- several evaluations of one run


def save_config(folder, run, **settings):
    """Write the configuration of an evaluation."""
    config = {"output_dir": str(folder), "run": str(run)} | settings
    (folder / "evaluation_config.yaml").write_text(yaml.safe_dump(config))


def test_evaluations_of_one_run_on_several_splits_are_listed_to_choose_from(tmp_path):
    run = tmp_path / "run"
    for split in ("val", "test"):
        folder = run / "evaluation" / f"task04-{split}-score-full"
        write_evaluation(folder, "net", 0.7, run=run)
        save_config(folder, run, data_name="task04", split=split, metrics={"a": 1})
    message = r"several data sets or splits; give one of.*task04-test-score-full.*task04-val-score"
    for source in (run, run / "evaluation"):
        with pytest.raises(UserError, match=message):
            build_leaderboard([source])
    leaderboard = build_leaderboard([run / "evaluation" / "task04-val-score-full"])
    assert list(leaderboard.index) == ["identity", "net"]


def test_several_metrics_are_no_several_methods(tmp_path):
    run = tmp_path / "run"
    for name in ("full", "learn2reg"):
        folder = run / "evaluation" / f"task04-test-score-{name}"
        write_evaluation(folder, "net", 0.7, run=run)
        save_config(folder, run, data_name="task04", split="test", metrics={"_target_": name})
    message = "several choices of metrics=, which are not several methods; give one of"
    with pytest.raises(UserError, match=message):
        build_leaderboard([run])


def test_a_model_without_run_is_checked_by_the_folder_of_its_evaluations(tmp_path):
    for split in ("val", "test"):
        folder = tmp_path / "demons" / "evaluation" / f"task04-{split}-score-full"
        write_evaluation(folder, "demons", 0.7)
        save_config(folder, "", data_name="task04", split=split, metrics={})
    with pytest.raises(UserError, match="several data sets or splits"):
        build_leaderboard([tmp_path / "demons"])


def test_several_tasks_of_one_run_are_rows_of_their_own(tmp_path):
    run = tmp_path / "run"
    for task, method in (("score", "net"), ("iterative_refinement", "net x 2")):
        folder = run / "evaluation" / f"task04-test-{task}-full"
        write_evaluation(folder, method, 0.7, run=run)
        save_config(folder, run, data_name="task04", split="test", metrics={})
    assert set(build_leaderboard([run]).index) == {"identity", "net", "net x 2"}
