"""The report in one file: what is in it, and that a browser shows, sorts and slides it."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer

from regnet_lab import ops
from regnet_lab.data.synthesis.phantom_pairs import Synthetic
from regnet_lab.evaluation.html_report import render, volumes
from regnet_lab.models import Identity
from regnet_lab.ops.pairs import registered
from regnet_lab.training.callbacks import CaseTable, Gallery
from regnet_lab.training.callbacks.example_cases import arrays, ranked
from regnet_lab.training.module import RegistrationModule

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make(shape, labels=True):
    images = {"fixed": noise(1, 1, *shape, seed=1), "moving": noise(1, 1, *shape, seed=2)}
    pair = images | {"spacing": torch.arange(1.0, len(shape) + 1)[None], "name": ["x"]}
    if labels:
        pair |= {f"{key}_labels": (image > 0.5).long() * 7 for key, image in images.items()}
    return pair, registered(pair, [1.5 * noise(1, len(shape), *shape, seed=3)])


def unpack(packed, shape):
    raw = gzip.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(raw, np.dtype(packed["type"]).newbyteorder("<")).reshape(shape)


def folder_of(path, shape=(7, 8, 9), method="net", labels=True):
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
    pair, registration = make(shape, labels)
    told = {"case": "b", "method": method, "metric": "dice", "score": 0.25}
    for rank in ("best", "worst"):
        np.savez(path / "gallery" / f"{rank}.npz", **arrays(pair, registration), **told)
    return path


# --- what is kept


def test_the_best_median_and_worst_are_told_by_the_first_metric_known():
    records = [
        {"case": c, "dice": d, "rmse": 1.0} for c, d in zip("abcde", (3, 1, 5, 2, 4), strict=True)
    ]
    found = ranked(list(enumerate(records)))
    assert {rank: record["case"] for rank, (_, _, record) in found.items()} == {
        "best": "c",
        "median": "a",
        "worst": "b",
    }
    assert found["worst"][:2] == (1, "dice")
    errors = [
        {"case": c, "dice": np.nan, "tre_mm": e} for c, e in zip("abc", (3, 1, 2), strict=True)
    ]
    assert {r: v[2]["case"] for r, v in ranked(list(enumerate(errors))).items()} == {
        "best": "b",
        "median": "c",
        "worst": "a",
    }
    assert ranked([]) == {}


@pytest.mark.parametrize("count", [1, 2])
def test_of_few_cases_each_is_kept_once(count):
    found = ranked([(i, {"case": i, "dice": -i}) for i in range(count)])
    assert len({place for place, _, _ in found.values()}) == len(found) == count


def test_evaluation_keeps_the_cases_its_table_tells(tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[CaseTable(str(tmp_path), pictures=0), Gallery(str(tmp_path))],
    )
    dataset = Synthetic("test", 2, shape=24, size=4, seed=0)
    module = RegistrationModule(Identity(), {}, None, name="net")
    trainer.test(module, torch.utils.data.DataLoader(dataset), verbose=False)
    cases = pd.read_csv(tmp_path / "cases.csv")
    order = cases[cases["method"] == "net"].sort_values("dice", ascending=False)["case"].tolist()
    names = [pair["name"] for pair in dataset]
    for rank, place in (("best", 0), ("median", 1), ("worst", 3)):
        kept = volumes.kept(tmp_path / "gallery" / f"{rank}.npz")
        assert str(kept["case"]) == order[place]
        expected = dataset[names.index(order[place])]
        np.testing.assert_allclose(kept["moving"], expected["moving"][0], atol=1e-3)
        assert not kept["u"].any()


# --- what a browser is given


@SHAPES
def test_volumes_come_back_as_they_were_to_a_byte(shape, tmp_path):
    pair, registration = make(shape)
    folder = folder_of(tmp_path / "run", shape)
    shown = volumes.case_content(folder / "gallery" / "worst.npz")
    found = {n: unpack(p, (-1, *shape) if n == "u" else shape) for n, p in shown["volumes"].items()}
    u = registration.displacement[0].numpy()
    np.testing.assert_allclose(found["u"] / 100, u, atol=0.01)
    determinant = ops.jacobian_determinant(registration.displacement)[0].numpy()
    np.testing.assert_array_equal(found["jacobian"] == 0, determinant.astype(np.float16) <= 0)
    inside = (determinant > 0.01) & (abs(np.log(np.abs(determinant))) < shown["log_limit"])
    levels = (found["jacobian"].astype(float) - 128) / 127 * shown["log_limit"]
    np.testing.assert_allclose(levels[inside], np.log(determinant[inside]), atol=0.05)
    for name in ("fixed", "moving"):
        grey, image = found[name].astype(float), pair[name][0, 0].numpy()
        clear = (grey > 0) & (grey < 255)
        slope, offset = np.polyfit(image[clear], grey[clear], 1)
        np.testing.assert_allclose(grey[clear], slope * image[clear] + offset, atol=1)
    np.testing.assert_array_equal(found["fixed_labels"], pair["fixed_labels"][0, 0])
    warped = ops.warp(pair["moving_labels"], registration.displacement, "nearest", "zeros")
    np.testing.assert_array_equal(found["warped_labels"], warped[0, 0])
    assert shown["title"] == "net, worst: b, Dice 0.25"
    assert shown["spacing"] == list(range(1, len(shape) + 1))
    assert f"folds in {100 * (determinant <= 0).mean():.3g} %" in shown["note"]


@SHAPES
def test_a_large_case_is_thinned_and_its_displacement_stays_the_same_in_millimetres(shape):
    pair, registration = make(shape)
    case = arrays(pair, registration)
    thin, stride = volumes.thinned(case, case["fixed"].size // 2)
    assert stride == 2
    every = (slice(None, None, 2),) * len(shape)
    np.testing.assert_array_equal(thin["fixed"], case["fixed"][every])
    mm = thin["u"] * thin["spacing"].reshape(-1, *[1] * len(shape))
    full = case["u"] * case["spacing"].reshape(-1, *[1] * len(shape))
    np.testing.assert_allclose(mm, full[(slice(None), *every)], rtol=1e-3)
    assert volumes.thinned(case, case["fixed"].size)[1] == 1


def inside(page):
    (text,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page)
    return json.loads(text)


def test_the_page_holds_the_numbers_of_the_tables_and_needs_no_network(tmp_path):
    folder = folder_of(tmp_path / "run" / "evaluation" / "same")
    (tmp_path / "run" / "config.yaml").write_text("seed: 7\n")
    page = render.page(render.content([folder]))
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert "/* style */" not in page
    shown = inside(page)
    board, *statistics, cases = shown["tables"]
    assert [row[0] for row in board["rows"]] == ["identity", "net"]
    assert board["rows"][0][2] == "0.200 ± 0.082"
    assert "Wilcoxon" in board["note"]
    assert [t["title"] for t in statistics] == ["Dice", "Dice30", "TRE (mm)"]
    assert statistics[0]["columns"][5:] == ["95 % from", "to", "p"]
    assert cases["columns"][:4] == ["case", "method", "Dice", "TRE (mm)"]
    assert cases["rows"][3] == ["a</script>", "net", "0.9", "-8"]
    assert [case["title"].split(":")[0] for case in shown["cases"]] == ["net, best", "net, worst"]
    assert [p["name"] for f in shown["figures"] for p in f["pictures"]] == ["dice by label"]
    png = base64.b64decode(shown["figures"][0]["pictures"][0]["png"])
    assert png.startswith(b"\x89PNG")
    assert shown["texts"] == [{"title": "run: config.yaml", "text": "seed: 7\n"}]


def test_methods_of_one_name_in_two_folders_are_told_apart_and_identity_is_one(tmp_path):
    folders = [folder_of(tmp_path / name, (9, 11)) for name in ("one", "two")]
    board, *_, cases = render.content(folders)["tables"]
    names = ["identity", "net (one)", "net (two)"]
    for rows, place in ((board["rows"], 0), (cases["rows"], 1)):
        assert [*dict.fromkeys(row[place] for row in rows)] == names


def test_the_user_s_name_for_a_method_stands_everywhere(tmp_path):
    folder = folder_of(tmp_path / "one", (9, 11))
    (folder / "about.json").write_text('{"method": "net"}')
    shown = render.content([f"ours={folder}"])
    board, *_, cases = shown["tables"]
    assert [row[0] for row in board["rows"]] == ["identity", "ours"]
    assert {row[1] for row in cases["rows"]} == {"identity", "ours"}
    assert [case["title"].split(":")[0] for case in shown["cases"]] == ["ours, best", "ours, worst"]


def test_evaluations_of_other_cases_stand_in_one_page_without_being_compared(tmp_path):
    folders = [folder_of(tmp_path / name, (9, 11), name) for name in ("one", "two")]
    cases = pd.read_csv(folders[1] / "cases.csv")
    cases[cases["case"] != "b"].to_csv(folders[1] / "cases.csv", index=False)
    summary, cases = render.content(folders)["tables"]
    assert summary["title"] == "Summary"
    assert [row[:2] for row in summary["rows"]] == [["identity", "3"], ["one", "3"], ["two", "2"]]
    assert len(cases["rows"]) == 3 + 3 + 2


def test_the_command_writes_the_page_and_tells_what_is_wrong(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "run", (9, 11), labels=False)
    monkeypatch.setattr(sys, "argv", ["html", str(folder), f"out={tmp_path}/report.html"])
    render.main()
    assert inside((tmp_path / "report.html").read_text(encoding="utf-8"))["cases"]
    (folder / "gallery" / "best.npz").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"best\.npz: is damaged"):
        render.main()
    nowhere = [str(tmp_path / "nowhere")]
    for arguments, told in (([], "usage:"), (nowhere, r"holds no evaluation \(cases\.csv\)")):
        monkeypatch.setattr(sys, "argv", ["html", *arguments])
        with pytest.raises(SystemExit, match=told):
            render.main()


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
  const told = { canvases: document.querySelectorAll("canvas").length, red: red("log det J") };
  const header = document.querySelectorAll("#all-cases th")[2];
  header.click(); told.up = column(2);
  header.click(); told.down = column(2);
  told.first = column(0)[0];
  told.numbers = ["< 0.001", "1,234,567", "0.611 ± 0.087", "-", ""].map(number);
  const slider = document.querySelector("input[data-axis]");
  if (slider) {
    const axis = slider.dataset.axis;
    const before = picture(axis);
    slider.value = Number(slider.value) ? 0 : 1;
    slider.dispatchEvent(new Event("input"));
    told.moved = picture(axis) !== before;
    told.label = slider.closest("label").textContent;
  }
  const pre = document.createElement("pre");
  pre.id = "told"; pre.textContent = JSON.stringify(told);
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
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">"))


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
@SHAPES
def test_a_browser_draws_every_view_sorts_by_a_click_and_slides(shape, tmp_path):
    folder = folder_of(tmp_path / "run", shape)
    shown = render.content([folder])
    told = browse(render.page(shown), tmp_path / "page.html")
    planes = {2: 1, 3: 3}[len(shape)]
    assert told["canvases"] == 9 * planes
    assert told["up"] == ["0.1", "0.2", "0.25", "0.3", "0.5", "0.9"]
    assert told["down"] == told["up"][::-1]
    assert told["first"] == "a</script>"
    assert told["numbers"] == [0.001, 1234567, 0.611, None, None]
    kept = shown["cases"][0]
    folded = unpack(kept["volumes"]["jacobian"], shape) == 0
    for axis, share in zip((2, 1, 0), told["red"], strict=False):
        here = folded if len(shape) == 2 else folded.take(kept["through"][axis], axis)
        assert share == pytest.approx(here.mean(), abs=0.03)
    if planes == 3:
        assert told["moved"]
        assert "axis 2 = 0" in told["label"]
