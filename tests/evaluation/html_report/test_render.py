"""The HTML report: its content, and that a browser shows, sorts and slides it."""

import base64
import gzip
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer

from regnet_lab import ops
from regnet_lab.cli import report
from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs
from regnet_lab.evaluation.html_report import render, volumes
from regnet_lab.models import Identity
from regnet_lab.ops.pairs import apply_displacement
from regnet_lab.training.callbacks import CaseTable, ExampleCases
from regnet_lab.training.callbacks.example_cases import convert_to_arrays, select_examples
from regnet_lab.training.module import RegistrationModule

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make_pair(shape, labels=True):
    images = {"fixed": noise(1, 1, *shape, seed=1), "moving": noise(1, 1, *shape, seed=2)}
    pair = images | {"spacing": torch.arange(1.0, len(shape) + 1)[None], "name": ["x"]}
    if labels:
        pair |= {f"{key}_labels": (image > 0.5).long() * 7 for key, image in images.items()}
    return pair, apply_displacement(pair, [1.5 * noise(1, len(shape), *shape, seed=3)])


def unpack(packed, shape):
    raw = gzip.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(raw, np.dtype(packed["type"]).newbyteorder("<")).reshape(shape)


def write_evaluation(path, shape=(7, 8, 9), method="net", labels=True):
    """An evaluation folder with two methods, three cases and a gallery."""
    (path / "gallery").mkdir(parents=True)
    rows = [
        {"case": case, "method": m, "dice": dice, "tre_mm": 10.0 - 20 * dice}
        for m, scores in (("identity", (0.1, 0.2, 0.3)), (method, (0.9, 0.25, 0.5)))
        for case, dice in zip(("a</script>", "b", "c"), scores, strict=True)
    ]
    pd.DataFrame(rows).to_csv(path / "cases.csv", index=False)
    label_rows = [{**row, "label": label} for row in rows for label in (1, 12)]
    pd.DataFrame(label_rows).to_csv(path / "labels.csv", index=False)
    pair, registration = make_pair(shape, labels)
    example = convert_to_arrays(pair, registration)
    example |= {"case": "b", "method": method, "metric": "dice", "score": 0.25}
    for rank in ("best", "worst"):
        np.savez(path / "gallery" / f"{rank}.npz", **example)
    return path


# --- example cases


def test_best_median_and_worst_case_are_chosen_by_the_first_metric():
    records = [
        {"case": c, "dice": d, "rmse": 1.0} for c, d in zip("abcde", (3, 1, 5, 2, 4), strict=True)
    ]
    examples = select_examples(list(enumerate(records)))
    assert {rank: record["case"] for rank, (_, _, record) in examples.items()} == {
        "best": "c",
        "median": "a",
        "worst": "b",
    }
    assert examples["worst"][:2] == (1, "dice")
    errors = [
        {"case": c, "dice": np.nan, "tre_mm": e} for c, e in zip("abc", (3, 1, 2), strict=True)
    ]
    assert {r: v[2]["case"] for r, v in select_examples(list(enumerate(errors))).items()} == {
        "best": "b",
        "median": "c",
        "worst": "a",
    }
    assert select_examples([]) == {}


@pytest.mark.parametrize("count", [1, 2])
def test_of_few_cases_each_is_chosen_once(count):
    examples = select_examples([(i, {"case": i, "dice": -i}) for i in range(count)])
    assert len({place for place, _, _ in examples.values()}) == len(examples) == count


def test_example_cases_agree_with_the_table(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[CaseTable(str(tmp_path), num_pictures=0), ExampleCases(str(tmp_path))],
    )
    dataset = PhantomPairs("test", 2, shape=24, num_pairs=4, seed=0)
    module = RegistrationModule(Identity(), {}, None, name="net")
    trainer.test(module, torch.utils.data.DataLoader(dataset), verbose=False)
    cases = pd.read_csv(tmp_path / "cases.csv")
    order = cases[cases["method"] == "net"].sort_values("dice", ascending=False)["case"].tolist()
    names = [pair["name"] for pair in dataset]
    for rank, place in (("best", 0), ("median", 1), ("worst", 3)):
        stored = volumes.read_example_case(tmp_path / "gallery" / f"{rank}.npz")
        assert str(stored["case"]) == order[place]
        expected = dataset[names.index(order[place])]
        np.testing.assert_allclose(stored["moving"], expected["moving"][0], atol=1e-3)
        assert not stored["u"].any()


# --- content of the page


def test_labels_above_the_range_of_the_page_are_numbered(tmp_path):
    shape = (7, 8, 9)
    folder = write_evaluation(tmp_path / "run", shape)
    path = folder / "gallery" / "worst.npz"
    stored = dict(np.load(path))
    ids = np.array([0, 614454277, 614454278])
    index = np.random.default_rng(0).integers(0, 3, shape)
    np.savez(path, **{**stored, "fixed_labels": ids[index], "warped_labels": ids[index[::-1]]})
    shown = volumes.make_case_content(path)["volumes"]
    np.testing.assert_array_equal(unpack(shown["fixed_labels"], shape), index)
    np.testing.assert_array_equal(unpack(shown["warped_labels"], shape), index[::-1])


@SHAPES
def test_volumes_are_decoded_to_within_a_byte(shape, tmp_path):
    pair, registration = make_pair(shape)
    folder = write_evaluation(tmp_path / "run", shape)
    shown = volumes.make_case_content(folder / "gallery" / "worst.npz")
    decoded = {
        n: unpack(p, (-1, *shape) if n == "u" else shape) for n, p in shown["volumes"].items()
    }
    u = registration.displacement[0].numpy()
    np.testing.assert_allclose(decoded["u"] / 100, u, atol=0.01)
    determinant = ops.jacobian_determinant(registration.displacement)[0].numpy()
    np.testing.assert_array_equal(decoded["jacobian"] == 0, determinant.astype(np.float16) <= 0)
    inside = (determinant > 0.01) & (abs(np.log(np.abs(determinant))) < shown["log_limit"])
    levels = (decoded["jacobian"].astype(float) - 128) / 127 * shown["log_limit"]
    np.testing.assert_allclose(levels[inside], np.log(determinant[inside]), atol=0.05)
    for name in ("fixed", "moving"):
        grey, image = decoded[name].astype(float), pair[name][0, 0].numpy()
        clear = (grey > 0) & (grey < 255)
        slope, offset = np.polyfit(image[clear], grey[clear], 1)
        np.testing.assert_allclose(grey[clear], slope * image[clear] + offset, atol=1)
    np.testing.assert_array_equal(decoded["fixed_labels"], pair["fixed_labels"][0, 0])
    warped = ops.warp(pair["moving_labels"], registration.displacement, "nearest", "zeros")
    np.testing.assert_array_equal(decoded["warped_labels"], warped[0, 0])
    assert shown["title"] == "net, worst: b, Dice 0.25"
    assert shown["spacing"] == list(range(1, len(shape) + 1))
    assert f"folds in {100 * (determinant <= 0).mean():.3g} %" in shown["note"]


@SHAPES
def test_a_large_case_is_subsampled_with_the_same_displacement_in_millimetres(shape):
    pair, registration = make_pair(shape)
    case = convert_to_arrays(pair, registration)
    coarse, stride = volumes.subsample_case(case, case["fixed"].size // 2)
    assert stride == 2
    every = (slice(None, None, 2),) * len(shape)
    np.testing.assert_array_equal(coarse["fixed"], case["fixed"][every])
    mm = coarse["u"] * coarse["spacing"].reshape(-1, *[1] * len(shape))
    full = case["u"] * case["spacing"].reshape(-1, *[1] * len(shape))
    np.testing.assert_allclose(mm, full[(slice(None), *every)], rtol=1e-3)
    assert volumes.subsample_case(case, case["fixed"].size)[1] == 1


def read_content(page):
    (text,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page)
    return json.loads(text)


def test_the_page_holds_the_numbers_of_the_tables_and_needs_no_network(tmp_path):
    folder = write_evaluation(tmp_path / "run" / "evaluation" / "same")
    (tmp_path / "run" / "config.yaml").write_text("seed: 7\n")
    page = render.render_page(render.collect_content([folder]))
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert "/* style */" not in page
    shown = read_content(page)
    leaderboard, *statistics, cases = shown["tables"]
    assert [row[0] for row in leaderboard["rows"]] == ["identity", "net"]
    assert leaderboard["rows"][0][2] == "0.200 ± 0.082"
    assert "Wilcoxon" in leaderboard["note"]
    assert [t["title"] for t in statistics] == ["Dice", "Dice30", "TRE (mm)"]
    assert statistics[0]["columns"][5:] == ["95 % from", "to", "p"]
    assert cases["columns"][:4] == ["case", "method", "Dice", "TRE (mm)"]
    assert cases["rows"][3] == ["a</script>", "net", "0.9", "-8"]
    assert [case["title"].split(":")[0] for case in shown["cases"]] == ["net, best", "net, worst"]
    assert [p["name"] for f in shown["figures"] for p in f["pictures"]] == ["dice by label"]
    png = base64.b64decode(shown["figures"][0]["pictures"][0]["png"])
    assert png.startswith(b"\x89PNG")
    assert shown["texts"] == [{"title": "run: config.yaml", "text": "seed: 7\n"}]


def test_methods_of_one_name_are_named_by_their_folders_and_identity_is_one_row(tmp_path):
    folders = [write_evaluation(tmp_path / name, (9, 11)) for name in ("one", "two")]
    leaderboard, *_, cases = render.collect_content(folders)["tables"]
    names = ["identity", "net (one)", "net (two)"]
    for rows, place in ((leaderboard["rows"], 0), (cases["rows"], 1)):
        assert [*dict.fromkeys(row[place] for row in rows)] == names


def test_the_display_name_of_a_method_is_used_everywhere(tmp_path):
    folder = write_evaluation(tmp_path / "one", (9, 11))
    (folder / "about.json").write_text('{"method": "net"}')
    shown = render.collect_content([f"ours={folder}"])
    leaderboard, *_, cases = shown["tables"]
    assert [row[0] for row in leaderboard["rows"]] == ["identity", "ours"]
    assert {row[1] for row in cases["rows"]} == {"identity", "ours"}
    assert [case["title"].split(":")[0] for case in shown["cases"]] == ["ours, best", "ours, worst"]


def test_evaluations_of_different_cases_are_shown_without_ranking(tmp_path):
    folders = [write_evaluation(tmp_path / name, (9, 11), name) for name in ("one", "two")]
    cases = pd.read_csv(folders[1] / "cases.csv")
    cases[cases["case"] != "b"].to_csv(folders[1] / "cases.csv", index=False)
    summary, cases = render.collect_content(folders)["tables"]
    assert summary["title"] == "Summary"
    assert [row[:2] for row in summary["rows"]] == [["identity", "3"], ["one", "3"], ["two", "2"]]
    assert len(cases["rows"]) == 3 + 3 + 2


def test_the_command_writes_the_page_and_names_errors(tmp_path, capsys):
    folder = write_evaluation(tmp_path / "run", (9, 11), labels=False)
    arguments = ["html", str(folder), "--output", str(tmp_path / "report.html")]
    report.main(arguments)
    assert read_content((tmp_path / "report.html").read_text(encoding="utf-8"))["cases"]
    (folder / "gallery" / "best.npz").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"best\.npz: is damaged"):
        report.main(arguments)
    with pytest.raises(SystemExit, match=r"holds no evaluation \(cases\.csv\)"):
        report.main(["html", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        report.main(["html"])
    assert "usage:" in capsys.readouterr().err


# --- in a browser

PROBE = """
<script>
const picture = (axis) => [...document.querySelectorAll(`input[data-axis="${axis}"]`)].map(
  (slider) => slider.closest(".row").querySelector("canvas").toDataURL())[0];
const column = (place) => [...document.querySelectorAll("#all-cases tbody tr")].map(
  (row) => row.cells[place].textContent);
const red = (name) => [...document.querySelectorAll("canvas")].filter(
  (c) => c.dataset.view.startsWith(name)).map((c) => {
    const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 0; i < d.length; i += 4) n += d[i] === 230 && d[i + 1] === 0 && d[i + 2] === 26;
    return n / (d.length / 4); });
function probe() {
  if (!document.getElementById("case").dataset.ready) return setTimeout(probe, 50);
  const probed = { canvases: document.querySelectorAll("canvas").length, red: red("log det J") };
  const header = document.querySelectorAll("#all-cases th")[2];
  header.click(); probed.up = column(2);
  header.click(); probed.down = column(2);
  probed.first = column(0)[0];
  probed.numbers = ["< 0.001", "1,234,567", "0.611 ± 0.087", "-", ""].map(parseNumber);
  const slider = document.querySelector("input[data-axis]");
  if (slider) {
    const axis = slider.dataset.axis;
    const before = picture(axis);
    slider.value = Number(slider.value) ? 0 : 1;
    slider.dispatchEvent(new Event("input"));
    probed.moved = picture(axis) !== before;
    probed.label = slider.closest("label").textContent;
  }
  const pre = document.createElement("pre");
  pre.id = "probed"; pre.textContent = JSON.stringify(probed);
  document.body.append(pre);
}
probe();
</script>
"""


def browse(page, path):
    path.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *options, profile, "--dump-dom", path.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    match = re.search(r'<pre id="probed">(.*?)</pre>', done.stdout)
    assert match, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(match[1].replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@SHAPES
def test_a_browser_draws_every_view_sorts_by_a_click_and_slides(shape, tmp_path):
    folder = write_evaluation(tmp_path / "run", shape)
    shown = render.collect_content([folder])
    probed = browse(render.render_page(shown), tmp_path / "page.html")
    planes = {2: 1, 3: 3}[len(shape)]
    assert probed["canvases"] == 9 * planes
    assert probed["up"] == ["0.1", "0.2", "0.25", "0.3", "0.5", "0.9"]
    assert probed["down"] == probed["up"][::-1]
    assert probed["first"] == "a</script>"
    assert probed["numbers"] == [0.001, 1234567, 0.611, None, None]
    case = shown["cases"][0]
    folded = unpack(case["volumes"]["jacobian"], shape) == 0
    for axis, share in zip((2, 1, 0), probed["red"], strict=False):
        plane = folded if len(shape) == 2 else folded.take(case["through"][axis], axis)
        assert share == pytest.approx(plane.mean(), abs=0.03)
    if planes == 3:
        assert probed["moved"]
        assert "axis 2 = 0" in probed["label"]
