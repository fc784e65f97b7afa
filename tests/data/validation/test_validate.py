"""Every way of damaging a data set is one sentence, all of them are found in one pass, and training
does not begin.
"""

import os
from functools import partial
from pathlib import Path
from shutil import copy
from zlib import crc32

import nibabel
import numpy as np
import pytest
import torch

from regnet_lab.data.case import Case, CasePairs, Points
from regnet_lab.data.datamodule import PairModule
from regnet_lab.data.datasets.learn2reg_2020 import task02, task04
from regnet_lab.data.datasets.mixture import Mixed
from regnet_lab.data.io.images import Volume
from regnet_lab.data.preprocessing.grids import CentredGrid, StretchedGrid, WorldGrid
from regnet_lab.data.synthesis.phantom_pairs import Synthetic
from regnet_lab.data.validation import image_stats
from regnet_lab.data.validation.case_checks import overlaps
from regnet_lab.data.validation.image_stats import digest, measure, quantiles
from regnet_lab.data.validation.report import check, column, label_column
from regnet_lab.data.validation.validate import examine
from regnet_lab.errors import UserError
from tests.helpers.learn2reg_2020 import AFFINE, SHAPE, save, volume, write_task02, write_task04

NUMBERS = (1, 3, 4, 250, 287)


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    write_task04(tmp_path)
    return tmp_path / "task_04"


def hippocampi(root, prepare=None):
    return partial(task04, root=str(root), prepare=prepare or CentredGrid(SHAPE))


def path_of(tree, kind, number):
    return tree / "Training" / kind / f"hippocampus_{number:03d}.nii.gz"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path, value):
    array = nibabel.load(path).get_fdata().astype(np.float32)
    array[3, 4, 5] = value
    save(path, array)


def colour(path):
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(path, np.zeros(SHAPE, dtype))


def flatten(path):
    save(path, volume(5, SHAPE[:2]))
    save(Path(str(path).replace("img", "label")), np.ones(SHAPE[:2], np.uint8))


def displace(path):
    moved = AFFINE.copy()
    moved[0, 3] = 3.5
    save(path, np.asarray(nibabel.load(path).dataobj), moved)


DAMAGES = {
    "truncated": ("img", truncate, "cannot be read"),
    "empty": ("img", lambda path: path.write_bytes(b""), "cannot be read"),
    "text": ("img", lambda path: path.write_text("not an image"), "cannot be read"),
    "complex": ("img", lambda path: save(path, volume(1).astype(np.complex64)), "complex"),
    "colours": ("img", colour, "colours"),
    "nan": ("img", lambda path: change(path, np.nan), "1 voxels are NaN"),
    "constant": ("img", lambda path: save(path, np.full(SHAPE, 7, np.int16)), "shows nothing"),
    "axes": ("img", flatten, "has 2 axes"),
    "negative label": ("label", lambda path: change(path, -1), "whole numbers"),
    "half label": ("label", lambda path: change(path, 0.5), "whole numbers"),
    "large label": ("label", lambda path: change(path, 40000), "whole numbers"),
    "truncated label": ("label", truncate, "cannot be read"),
    "missing label": ("label", lambda path: path.unlink(), "missing"),
    "label shape": ("label", lambda path: save(path, np.ones((9, 9, 9), np.uint8)), "its shape"),
    "label header": ("label", displace, "2 voxels beside"),
}


def test_a_sound_data_set_has_no_faults_and_its_table_says_what_it_holds(tree):
    checkup = examine(hippocampi(tree))
    assert not checkup.faults
    assert not checkup.warnings
    train, val, test = checkup.listings
    told = column(checkup, train)
    assert (told["pairs"], told["cases"], told["label maps"], told["masks"]) == ("6", "3", "3", "0")
    assert told["shape"] == "12 x 14 x 10"
    assert told["spacing (mm)"] == "1.75 x 1.25 x 1.75"
    assert told["orientation"] == "RAS (3)"
    assert told["minimum"] == "-1000 to -996"
    assert told["prepared range"] == "0-1"
    assert len(checkup.items[train]) == 3
    assert [listing.title for listing in (train, val, test)] == ["train", "val", "test"]
    labels = label_column(checkup, val)
    assert list(labels) == ["0", "1", "2"]
    counts = [(nibabel.load(path_of(tree, "label", n)).get_fdata() == 2).sum() for n in (250, 287)]
    assert labels["2"] == f"2 of 2, {np.median(counts):.0f}"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence_that_names_it(damage, tree):
    kind, spoil, reason = DAMAGES[damage]
    path = path_of(tree, kind, 287)
    spoil(path)
    (fault,) = examine(hippocampi(tree)).faults
    assert fault.startswith(str(path))
    assert reason in fault
    assert "\n" not in fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff\xfe\x00\x81", "fixed"),
        (b"fix,moving\n250,287\n", "columns 'fixed' and 'moving'"),
        (b"fixed,moving\n250,999\n", "no image of case 999"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_sentence_and_hides_no_other_split(text, reason, tree):
    write_task04(tree.parent / "Test", numbers=(7, 8), held_out=((7, 8),))
    test_root = tree.parent / "Test" / "task_04"
    (tree / "pairs_val.csv").write_bytes(text)
    truncate(path_of(test_root, "img", 8))
    faults = examine(partial(hippocampi(tree), test_root=str(test_root))).faults
    assert len(faults) == 2
    assert "pairs_val.csv" in faults[0]
    assert reason in faults[0]
    assert "hippocampus_008" in faults[1]


def marked(split, folder, damage=lambda table: None):
    """Two cases with landmarks in a table with columns x, y, z; the table of one is damaged."""
    cases = []
    for side in ("fixed", "moving"):
        image, table = folder / f"{split}_{side}.nii.gz", folder / f"{split}_{side}.csv"
        save(image, volume(crc32(str(image).encode())))
        table.write_text("x,y,z\n1,2,3\n4,5,6\n")
        cases.append(Case(image.name, image, points=Points(table, ("x", "y", "z"))))
    damage(cases[1].points.path)
    return CasePairs([tuple(cases)], CentredGrid(SHAPE))


POINTS = {
    "unreadable": (lambda table: table.write_bytes(b"\xff\xfe\x00\x81"), "cannot be read"),
    "missing": (lambda table: table.unlink(), "missing"),
    "column": (lambda table: table.write_text("x,y,depth\n1,2,3\n4,5,6\n"), "column 'z'"),
    "outside": (lambda table: table.write_text("x,y,z\n1,2,3\n4,14,6\n"), "1 of 2 landmarks"),
    "number": (lambda table: table.write_text("x,y,z\n1,2,3\n4,nan,6\n"), "'nan'"),
    "count": (lambda table: table.write_text("x,y,z\n1,2,3\n"), "has 2 landmarks, but"),
}


@pytest.mark.parametrize("damage", POINTS)
def test_damaged_landmarks_are_one_sentence(damage, tmp_path):
    spoil, reason = POINTS[damage]
    sound, spoilt = (
        partial(marked, folder=tmp_path, damage=d) for d in (lambda table: None, spoil)
    )
    assert not examine(sound, ["val"]).faults
    (fault,) = examine(spoilt, ["val"]).faults
    assert "val_moving.csv" in fault
    assert reason in fault


def test_landmarks_are_judged_even_where_the_image_is_damaged(tmp_path):
    def damage(table):
        table.write_text("x,y\n1,2\n")
        truncate(table.with_suffix(".nii.gz"))

    first, second = examine(partial(marked, folder=tmp_path, damage=damage), ["val"]).faults
    assert "val_moving.nii.gz" in first
    assert "val_moving.csv" in second


def test_everything_that_is_wrong_is_found_in_one_pass(tmp_path):
    numbers = range(1, 20)
    write_task04(tmp_path, numbers, held_out=((18, 19),))
    tree = tmp_path / "task_04"
    expected = {}
    for number, (kind, spoil, reason) in enumerate(DAMAGES.values(), start=1):
        path = path_of(tree, kind, number)
        spoil(path)
        expected[str(path)] = reason
    copy(path_of(tree, "img", 17), path_of(tree, "img", 18))
    expected[str(path_of(tree, "img", 18))] = "trained on"
    write_task04(tmp_path / "other")
    (tmp_path / "other" / "task_04" / "pairs_val.csv").write_text("a,b\n1,2\n")
    expected[str(tmp_path / "other" / "task_04" / "pairs_val.csv")] = "columns"
    parts = {"sound": hippocampi(tree), "listless": hippocampi(tmp_path / "other")}
    for name, (spoil, reason) in POINTS.items():
        (tmp_path / name).mkdir()
        parts[name] = partial(marked, folder=tmp_path / name, damage=spoil)
        for split in ("train", "val"):
            expected[str(tmp_path / name / f"{split}_moving.csv")] = reason
    faults = examine(partial(Mixed, datasets=parts), ("train", "val")).faults
    assert len(faults) == len(expected) == len(DAMAGES) + 2 + 2 * len(POINTS)
    for file, reason in expected.items():
        assert sum(file in fault and reason in fault for fault in faults) == 1, file


def test_a_name_of_two_images_is_a_fault(tree):
    def listed(split):
        cases = [Case(f"case{n // 100}", path_of(tree, "img", n)) for n in (1, 3, 250)]
        return CasePairs([(cases[0], cases[2]), (cases[1], cases[2])], CentredGrid(SHAPE))

    (fault,) = examine(listed, ["train"]).faults
    assert "hippocampus_001.nii.gz" in fault
    assert "hippocampus_003.nii.gz" in fault
    assert "named 'case0'" in fault


def splits_of(tree, **pairs):
    def listed(split):
        cases = {n: Case(f"case{n}", path_of(tree, "img", n)) for n in NUMBERS}
        return CasePairs([(cases[a], cases[b]) for a, b in pairs[split]], CentredGrid(SHAPE))

    return listed


def test_an_image_that_is_trained_on_and_judged_leaks_unless_it_is_the_atlas(tree):
    leaking = splits_of(tree, train=[(1, 3), (3, 1)], val=[(4, 3)], test=[(3, 250)])
    (fault,) = examine(leaking).faults
    assert fault.startswith(str(path_of(tree, "img", 3)))
    assert "val and test" in fault
    atlas = splits_of(tree, train=[(1, 3), (1, 4)], val=[(1, 250)], test=[(1, 287)])
    assert not examine(atlas).faults


def test_the_same_voxels_under_another_name_leak_however_they_are_compressed(tree):
    again = nibabel.load(path_of(tree, "img", 1))
    save(path_of(tree, "img", 287), np.asarray(again.dataobj))
    (fault,) = examine(hippocampi(tree)).faults
    assert fault.startswith(str(path_of(tree, "img", 287)))
    assert "hippocampus_001" in fault


def test_pairs_that_are_wittingly_in_all_splits_and_twins_are_warned_of(tree):
    copy(path_of(tree, "img", 1), path_of(tree, "img", 3))
    same = [(1, 3), (4, 1)]
    checkup = examine(splits_of(tree, train=same, val=same), ("train", "val"))
    assert not checkup.faults
    assert any("very ones that are trained on" in warning for warning in checkup.warnings)
    assert any("same voxels" in warning for warning in checkup.warnings)


def test_labels_that_differ_and_files_of_no_case_are_warned_of(tree):
    save(path_of(tree, "label", 4), np.ones(SHAPE, np.uint8))
    save(path_of(tree, "img", 5).with_name("notes.nii.gz"), volume(9))
    checkup = examine(hippocampi(tree))
    assert not checkup.faults
    extra, lost = checkup.warnings
    assert "notes.nii.gz" in extra
    assert "label 2 is missing from 1 of 5 label maps" in lost
    assert "hippocampus_004" in lost
    unselected = examine(hippocampi(tree, CentredGrid(SHAPE, labels={7: [1]}))).warnings
    assert not any("label 2" in warning for warning in unselected)


def test_an_empty_split_is_a_fault(tree):
    (fault,) = examine(splits_of(tree, train=[(1, 3)], val=[]), ("train", "val")).faults
    assert "'val'" in fault


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 6)])
def test_the_overlap_of_boxes_is_that_of_the_closed_form(shape):
    affine = np.diag([2.0, -1.5, 3.0, 1.0])
    moved, small, turned = affine.copy(), affine.copy(), affine.copy()
    moved[:3, 3] += 6, -3, 0  # 3 and 2 voxels
    small[:3, :3] /= 2
    turned[:3, :2] = affine[:3, 1::-1]
    volumes = [Volume(np.zeros(shape), a) for a in (affine, moved, small, turned)]
    shares = overlaps([volumes[0]] * 4, volumes)
    assert shares == pytest.approx([1, (5 / 8) * (8 / 10), 1, 8 * 8 / (8 * 10)])
    assert overlaps(volumes[1:2], volumes[:1]) == pytest.approx(shares[1:2])


def test_an_image_elsewhere_in_the_world_is_named_once_where_the_world_counts(tree):
    path = path_of(tree, "img", 3)
    elsewhere = AFFINE.copy()
    elsewhere[2, 3] = 16.0
    for kind in ("img", "label"):
        array = np.asarray(nibabel.load(path_of(tree, kind, 3)).dataobj)
        save(path_of(tree, kind, 3), array, elsewhere)
    (fault,) = examine(hippocampi(tree, WorldGrid())).faults
    assert fault.startswith(str(path))
    assert "4 pairs" in fault
    assert "9 %" in fault
    assert not examine(hippocampi(tree, CentredGrid(SHAPE))).faults


@pytest.mark.parametrize(
    "prepare",
    [
        partial(CentredGrid, (8, 9, 10)),
        partial(StretchedGrid, (8, 9, 10), shared_range=True),
        partial(WorldGrid),
        partial(WorldGrid, spacing=3.5),
    ],
)
def test_the_memory_told_is_what_the_cache_takes(prepare, tmp_path):
    write_task02(tmp_path)
    grid = prepare()
    dataset = partial(task02, root=str(tmp_path), prepare=grid)
    checkup = examine(dataset, ["train"], thorough=False)
    for index in range(len(pairs := dataset("train"))):
        pairs[index]
    assert checkup.megabytes[checkup.listings[0]] == pytest.approx(
        grid.cache.used / 1e6, rel=0.02, abs=0.003
    )


def test_too_little_memory_is_warned_of(tree):
    prepare = CentredGrid(SHAPE, megabytes=0.02)
    warnings = examine(hippocampi(tree, prepare), ["train"], thorough=False).warnings
    assert ["prepare.megabytes" in warning for warning in warnings] == [True]


def counted(monkeypatch):
    read = []

    def measure_and_count(kind, path):
        read.append(path.name)
        return measure(kind, path)

    monkeypatch.setattr(image_stats, "measure", measure_and_count)
    return read


def test_only_files_that_changed_and_faulty_ones_are_read_again(tree, monkeypatch):
    read = counted(monkeypatch)
    truncate(path_of(tree, "img", 3))
    first = examine(hippocampi(tree), thorough=False)
    assert len(read) == 2 * len(NUMBERS)
    read.clear()
    again = examine(hippocampi(tree), thorough=False)
    assert read == ["hippocampus_003.nii.gz"]
    assert again.faults == first.faults
    assert again.looks.keys() == first.looks.keys()
    for case, look in again.looks.items():
        assert look.labels == first.looks[case].labels
        assert look.image == first.looks[case].image
    read.clear()
    os.utime(path_of(tree, "label", 4), ns=(1, 1))
    examine(hippocampi(tree), thorough=False)
    assert sorted(read) == ["hippocampus_003.nii.gz", "hippocampus_004.nii.gz"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"revision": 1, "files": {"x": 1}}', "{}"])
def test_a_damaged_memory_is_no_obstacle(content, tree, monkeypatch):
    image_stats.memory().parent.mkdir(parents=True)
    image_stats.memory().write_text(content)
    read = counted(monkeypatch)
    assert not examine(hippocampi(tree)).faults
    assert len(read) == 2 * len(NUMBERS)
    examine(hippocampi(tree))
    assert len(read) == 2 * len(NUMBERS)


def test_a_memory_that_cannot_be_written_is_no_obstacle(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not examine(hippocampi(tree)).faults


@pytest.mark.parametrize("order", "CF")
def test_facts_do_not_depend_on_how_an_array_lies_in_memory(order):
    array = np.arange(60.0).reshape(3, 4, 5)
    assert digest(array) == digest(np.asarray(array, order=order))
    assert digest(array) != digest(array.reshape(5, 4, 3))
    assert digest(array) != digest(array + 1)
    expected = [0, *np.percentile(array, (0.5, 99.5)), 59]
    assert quantiles(np.asarray(array, order=order)) == pytest.approx(expected)


class Handmade(torch.utils.data.Dataset):
    """Items that no file stands behind."""

    def __init__(self, **changes):
        self.changes = changes

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = torch.linspace(0, 1, 120).view(1, 12, 10) + index
        item = {"fixed": image, "moving": image.flip(1), "spacing": torch.ones(2), "name": "x"}
        item |= {key: value for key, value in self.changes.items() if value is not None}
        return {key: item[key] for key in item if self.changes.get(key, 0) is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"moving": torch.full((1, 12, 10), torch.nan)}, "'moving' holds NaN"),
        ({"moving": torch.zeros(1, 12, 9)}, "'moving' has shape (1, 12, 9)"),
        ({"fixed": torch.zeros(1, 12, 10)}, "'fixed' is 0 everywhere"),
        ({"spacing": None}, "no 'spacing'"),
        ({"fixed_points": torch.tensor([[3.0, 4.0], [3.0, 9.6]])}, "1 of 2 fixed landmarks"),
        ({"fixed_points": torch.zeros(2, 3)}, "'fixed_points' has shape (2, 3)"),
        ({"displacement": torch.zeros(3, 12, 10)}, "'displacement' has shape"),
        ({"fixed_labels": torch.zeros(12, 10)}, "'fixed_labels' has shape"),
    ],
)
def test_items_without_files_are_looked_at(changes, reason):
    assert not examine(lambda split: Handmade()).faults
    faults = examine(lambda split: Handmade(**changes), ["val"]).faults
    assert any(reason in fault and "val, item 0" in fault for fault in faults)


def test_synthetic_data_are_looked_at_and_the_table_says_so():
    checkup = examine(partial(Synthetic, ndim=2, shape=[24, 20], size=4), ["train"])
    assert not checkup.faults
    told = column(checkup, checkup.listings[0])
    assert (told["pairs"], told["items looked at"]) == ("4", "3")
    assert told["prepared shape"] == "24 x 20"
    assert "displacement" in told["offers"]


def test_training_is_refused_with_every_fault_on_a_line_of_its_own(tree, capsys, caplog):
    caplog.set_level("INFO")
    data = PairModule(hippocampi(tree))
    check(data, whole=False)
    assert capsys.readouterr() == ("", "")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data: 7 pairs of 5 cases, 0 MB")
    truncate(path_of(tree, "img", 1))
    with pytest.raises(UserError, match="hippocampus_001"):
        check(data, whole=False)
    assert capsys.readouterr().err == ""
    change(path_of(tree, "label", 287), -4)
    with pytest.raises(UserError, match="2 faults"):
        check(data, whole=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(f"hippocampus_{n}" in line for n, line in zip(("001", "287"), lines, strict=True))


def test_the_command_refuses_to_train_and_doctor_prints_all(command, tmp_path):
    write_task04(tmp_path / "learn2reg2020")
    tree = tmp_path / "learn2reg2020" / "task_04"
    truncate(path_of(tree, "img", 1))
    change(path_of(tree, "label", 287), -4)
    arguments = ("train.py", "data=task04", f"data_root={tmp_path}", "run_dir=run")
    fonts = str(Path.home() / ".cache" / "matplotlib")  # lest they be searched for again
    done = command(*arguments, MPLCONFIGDIR=fonts)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert not (tmp_path / "outputs" / "run" / "checkpoints").exists()
    done = command(*arguments, "doctor=true", MPLCONFIGDIR=fonts, COLUMNS="200")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("fault: ") for line in done.stdout.splitlines()) == 2
    assert "12 x 14 x 10" in done.stdout
