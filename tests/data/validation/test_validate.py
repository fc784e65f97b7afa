"""Validation reports every problem of a data set in one sentence and refuses to train on it."""

import os
from functools import partial
from pathlib import Path
from shutil import copy
from zlib import crc32

import nibabel
import numpy as np
import pytest
import torch

from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.data.datasets.base import CasePairs
from regnet_lab.data.datasets.learn2reg_2020 import list_task02_pairs, list_task04_pairs
from regnet_lab.data.datasets.mixture import Mixture
from regnet_lab.data.io.images import Volume
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed, Resize
from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs
from regnet_lab.data.validation import image_stats
from regnet_lab.data.validation.case_checks import compute_overlaps
from regnet_lab.data.validation.image_stats import (
    compute_digest,
    compute_image_stats,
    compute_quantiles,
)
from regnet_lab.data.validation.report import summarize_labels, summarize_split, validate_data
from regnet_lab.data.validation.validate import validate_dataset
from regnet_lab.errors import UserError
from tests.helpers.learn2reg_2020 import AFFINE, SHAPE, save, volume, write_task02, write_task04

NUMBERS = (1, 3, 4, 250, 287)


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    write_task04(tmp_path)
    return tmp_path / "task_04"


def make_dataset(root, prepare=None):
    return partial(list_task04_pairs, root=str(root), prepare=prepare or CropOrPad(SHAPE))


def path_of(tree, kind, number):
    return tree / "Training" / kind / f"hippocampus_{number:03d}.nii.gz"


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_voxel(path, value):
    array = nibabel.load(path).get_fdata().astype(np.float32)
    array[3, 4, 5] = value
    save(path, array)


def write_color_image(path):
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(path, np.zeros(SHAPE, dtype))


def flatten_image(path):
    save(path, volume(5, SHAPE[:2]))
    save(Path(str(path).replace("img", "label")), np.ones(SHAPE[:2], np.uint8))


def shift_header(path):
    moved = AFFINE.copy()
    moved[0, 3] = 3.5
    save(path, np.asarray(nibabel.load(path).dataobj), moved)


def exchange_axes(path):
    save(path, np.asarray(nibabel.load(path).dataobj).T)


def move_away(path):
    moved = AFFINE.copy()
    moved[:3, 3] = 500
    save(path, np.asarray(nibabel.load(path).dataobj)[1:], moved)


DAMAGES = {
    "truncated": ("img", truncate, "cannot be read"),
    "empty": ("img", lambda path: path.write_bytes(b""), "cannot be read"),
    "text": ("img", lambda path: path.write_text("not an image"), "cannot be read"),
    "complex": ("img", lambda path: save(path, volume(1).astype(np.complex64)), "complex"),
    "colors": ("img", write_color_image, "colours"),
    "nan": ("label", lambda path: change_voxel(path, np.nan), "1 voxels are NaN"),
    "constant": ("img", lambda path: save(path, np.full(SHAPE, 7, np.int16)), "is constant"),
    "axes": ("img", flatten_image, "has 2 axes"),
    "negative label": ("label", lambda path: change_voxel(path, -1), "whole numbers"),
    "half label": ("label", lambda path: change_voxel(path, 0.5), "whole numbers"),
    "large label": ("label", lambda path: change_voxel(path, 3e9), "not exact"),
    "truncated label": ("label", truncate, "cannot be read"),
    "missing label": ("label", lambda path: path.unlink(), "missing"),
    "label axes": ("label", exchange_axes, "axes exchanged"),
    "label elsewhere": ("label", move_away, "another shape"),
    "label header": ("label", shift_header, "2 voxels away"),
}


def test_valid_data_have_no_errors_and_are_summarized(tree):
    report = validate_dataset(make_dataset(tree))
    assert not report.errors
    assert not report.warnings
    train, val, test = report.dataset_splits
    summary = summarize_split(report, train)
    assert (summary["pairs"], summary["cases"], summary["label maps"], summary["masks"]) == (
        "6",
        "3",
        "3",
        "0",
    )
    assert summary["shape"] == "12 x 14 x 10"
    assert summary["spacing (mm)"] == "1.75 x 1.25 x 1.75"
    assert summary["orientation"] == "RAS (3)"
    assert summary["minimum"] == "-1000 to -996"
    assert summary["prepared range"] == "0-1"
    assert len(report.samples[train]) == 3
    assert [dataset_split.title for dataset_split in (train, val, test)] == ["train", "val", "test"]
    labels = summarize_labels(report, val)
    assert list(labels) == ["0", "1", "2"]
    counts = [(nibabel.load(path_of(tree, "label", n)).get_fdata() == 2).sum() for n in (250, 287)]
    assert labels["2"] == f"2 of 2, {np.median(counts):.0f}"


def test_labels_and_masks_are_validated_as_they_are_read(tree, tmp_path):
    labels = nibabel.load(path_of(tree, "label", 287))
    ids = np.array([0, 614454277, 16777217], np.int32)[np.asarray(labels.dataobj)]
    turned = nibabel.Nifti1Image(ids, labels.affine).as_reoriented([[1, -1], [0, 1], [2, -1]])
    nibabel.save(turned, path_of(tree, "label", 287))
    mask = tmp_path / "mask.nii.gz"
    save(mask, np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32))

    def listed(split):
        image = path_of(tree, "img", 287)
        case = Case("a", image, path_of(tree, "label", 287), mask)
        return CasePairs([(case, case)], CropOrPad(SHAPE))

    report = validate_dataset(listed, ["val"])
    assert not report.errors
    (summary,) = report.summaries.values()
    assert summary.labels.counts == {i: (ids == i).sum() for i in (0, 16777217, 614454277)}


def test_trusted_labels_are_not_refused(tree):
    shift_header(path_of(tree, "label", 287))
    assert len(validate_dataset(make_dataset(tree)).errors) == 1
    trusting = make_dataset(tree, CropOrPad(SHAPE, trust_array_order=True))
    assert not validate_dataset(trusting).errors


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gives_one_error_that_names_it(damage, tree):
    kind, spoil, reason = DAMAGES[damage]
    path = path_of(tree, kind, 287)
    spoil(path)
    (error,) = validate_dataset(make_dataset(tree)).errors
    assert error.startswith(str(path))
    assert reason in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\xff\xfe\x00\x81", "cannot be read as text"),
        (b"fix,moving\n250,287\n", "no column 'fixed'"),
        (b"fixed,moving\n250,999\n", "no image of case 999"),
    ],
)
def test_an_unreadable_pair_list_gives_one_error_and_other_splits_are_checked(text, reason, tree):
    write_task04(tree.parent / "Test", numbers=(7, 8), held_out=((7, 8),))
    test_root = tree.parent / "Test" / "task_04"
    (tree / "pairs_val.csv").write_bytes(text)
    truncate(path_of(test_root, "img", 8))
    errors = validate_dataset(partial(make_dataset(tree), test_root=str(test_root))).errors
    assert len(errors) == 2
    assert "pairs_val.csv" in errors[0]
    assert reason in errors[0]
    assert "hippocampus_008" in errors[1]


def make_landmark_pairs(split, folder, damage=lambda table: None):
    """Two cases with landmarks in a table with columns x, y, z; the table of one is damaged."""
    cases = []
    for side in ("fixed", "moving"):
        image, table = folder / f"{split}_{side}.nii.gz", folder / f"{split}_{side}.csv"
        save(image, volume(crc32(str(image).encode())))
        table.write_text("x,y,z\n1,2,3\n4,5,6\n")
        cases.append(Case(image.name, image, points=LandmarkFile(table, ("x", "y", "z"))))
    damage(cases[1].points.path)
    return CasePairs([tuple(cases)], CropOrPad(SHAPE))


POINTS = {
    "unreadable": (lambda table: table.write_bytes(b"\xff\xfe\x00\x81"), "cannot be read"),
    "missing": (lambda table: table.unlink(), "missing"),
    "column": (lambda table: table.write_text("x,y,depth\n1,2,3\n4,5,6\n"), "column 'z'"),
    "outside": (lambda table: table.write_text("x,y,z\n1,2,3\n4,14,6\n"), "1 of 2 landmarks"),
    "number": (lambda table: table.write_text("x,y,z\n1,2,3\n4,nan,6\n"), "'nan'"),
    "count": (lambda table: table.write_text("x,y,z\n1,2,3\n"), "has 2 landmarks, but"),
}


@pytest.mark.parametrize("damage", POINTS)
def test_damaged_landmarks_give_one_error(damage, tmp_path):
    spoil, reason = POINTS[damage]
    sound, spoilt = (
        partial(make_landmark_pairs, folder=tmp_path, damage=d) for d in (lambda table: None, spoil)
    )
    assert not validate_dataset(sound, ["val"]).errors
    (error,) = validate_dataset(spoilt, ["val"]).errors
    assert "val_moving.csv" in error
    assert reason in error


def test_landmarks_of_a_damaged_image_are_checked(tmp_path):
    def damage(table):
        table.write_text("x,y\n1,2\n")
        truncate(table.with_suffix(".nii.gz"))

    first, second = validate_dataset(
        partial(make_landmark_pairs, folder=tmp_path, damage=damage), ["val"]
    ).errors
    assert "val_moving.nii.gz" in first
    assert "val_moving.csv" in second


def test_all_errors_are_found_in_one_pass(tmp_path):
    numbers = range(1, 20)
    write_task04(tmp_path, numbers, held_out=((18, 19),))
    tree = tmp_path / "task_04"
    expected = {}
    for number, (kind, spoil, reason) in enumerate(DAMAGES.values(), start=1):
        path = path_of(tree, kind, number)
        spoil(path)
        expected[str(path)] = reason
    copy(path_of(tree, "img", 17), path_of(tree, "img", 18))
    expected[str(path_of(tree, "img", 18))] = "used for training"
    write_task04(tmp_path / "other")
    (tmp_path / "other" / "task_04" / "pairs_val.csv").write_text("a,b\n1,2\n")
    expected[str(tmp_path / "other" / "task_04" / "pairs_val.csv")] = "no column 'fixed'"
    parts = {"sound": make_dataset(tree), "listless": make_dataset(tmp_path / "other")}
    for name, (spoil, reason) in POINTS.items():
        (tmp_path / name).mkdir()
        parts[name] = partial(make_landmark_pairs, folder=tmp_path / name, damage=spoil)
        for split in ("train", "val"):
            expected[str(tmp_path / name / f"{split}_moving.csv")] = reason
    errors = validate_dataset(partial(Mixture, datasets=parts), ("train", "val")).errors
    assert len(errors) == len(expected) == len(DAMAGES) + 2 + 2 * len(POINTS)
    for file, reason in expected.items():
        assert sum(file in error and reason in error for error in errors) == 1, file


def test_duplicate_case_names_are_an_error(tree):
    def listed(split):
        cases = [Case(f"case{n // 100}", path_of(tree, "img", n)) for n in (1, 3, 250)]
        return CasePairs([(cases[0], cases[2]), (cases[1], cases[2])], CropOrPad(SHAPE))

    (error,) = validate_dataset(listed, ["train"]).errors
    assert "hippocampus_001.nii.gz" in error
    assert "hippocampus_003.nii.gz" in error
    assert "named 'case0'" in error


def make_splits(tree, **pairs):
    def listed(split):
        cases = {n: Case(f"case{n}", path_of(tree, "img", n)) for n in NUMBERS}
        return CasePairs([(cases[a], cases[b]) for a, b in pairs[split]], CropOrPad(SHAPE))

    return listed


def test_images_shared_by_training_and_evaluation_are_errors_except_an_atlas(tree):
    leaking = make_splits(tree, train=[(1, 3), (3, 1)], val=[(4, 3)], test=[(3, 250)])
    (error,) = validate_dataset(leaking).errors
    assert error.startswith(str(path_of(tree, "img", 3)))
    assert "val and test" in error
    atlas = make_splits(tree, train=[(1, 3), (1, 4)], val=[(1, 250)], test=[(1, 287)])
    assert not validate_dataset(atlas).errors


def test_copies_of_training_images_are_errors_whatever_their_compression(tree):
    again = nibabel.load(path_of(tree, "img", 1))
    save(path_of(tree, "img", 287), np.asarray(again.dataobj))
    (error,) = validate_dataset(make_dataset(tree)).errors
    assert error.startswith(str(path_of(tree, "img", 287)))
    assert "hippocampus_001" in error


def test_reused_training_pairs_and_duplicate_images_give_warnings(tree):
    copy(path_of(tree, "img", 1), path_of(tree, "img", 3))
    same = [(1, 3), (4, 1)]
    report = validate_dataset(make_splits(tree, train=same, val=same), ("train", "val"))
    assert not report.errors
    assert any("exactly the pairs used for training" in warning for warning in report.warnings)
    assert any("same voxels" in warning for warning in report.warnings)


def test_inconsistent_labels_and_unlisted_files_give_warnings(tree):
    save(path_of(tree, "label", 4), np.ones(SHAPE, np.uint8))
    save(path_of(tree, "img", 5).with_name("notes.nii.gz"), volume(9))
    report = validate_dataset(make_dataset(tree))
    assert not report.errors
    extra, lost = report.warnings
    assert "notes.nii.gz" in extra
    assert "label 2 is missing from 1 of 5 label maps" in lost
    assert "hippocampus_004" in lost
    unselected = validate_dataset(make_dataset(tree, CropOrPad(SHAPE, labels={7: [1]}))).warnings
    assert not any("label 2" in warning for warning in unselected)


def test_an_empty_split_is_an_error(tree):
    (error,) = validate_dataset(make_splits(tree, train=[(1, 3)], val=[]), ("train", "val")).errors
    assert "'val'" in error


@pytest.mark.parametrize("shape", [(8, 10), (8, 10, 6)])
def test_overlap_matches_the_closed_form(shape):
    affine = np.diag([2.0, -1.5, 3.0, 1.0])
    moved, small, turned = affine.copy(), affine.copy(), affine.copy()
    moved[:3, 3] += 6, -3, 0  # 3 and 2 voxels
    small[:3, :3] /= 2
    turned[:3, :2] = affine[:3, 1::-1]
    volumes = [Volume(np.zeros(shape), a) for a in (affine, moved, small, turned)]
    shares = compute_overlaps([volumes[0]] * 4, volumes)
    assert shares == pytest.approx([1, (5 / 8) * (8 / 10), 1, 8 * 8 / (8 * 10)])
    assert compute_overlaps(volumes[1:2], volumes[:1]) == pytest.approx(shares[1:2])


def test_an_image_without_overlap_is_named_once_if_pairs_meet_in_world_coordinates(tree):
    path = path_of(tree, "img", 3)
    elsewhere = AFFINE.copy()
    elsewhere[2, 3] = 16.0
    for kind in ("img", "label"):
        array = np.asarray(nibabel.load(path_of(tree, kind, 3)).dataobj)
        save(path_of(tree, kind, 3), array, elsewhere)
    (error,) = validate_dataset(make_dataset(tree, ResampleToFixed())).errors
    assert error.startswith(str(path))
    assert "4 pairs" in error
    assert "9 %" in error
    assert not validate_dataset(make_dataset(tree, CropOrPad(SHAPE))).errors


@pytest.mark.parametrize(
    "prepare",
    [
        partial(CropOrPad, (8, 9, 10)),
        partial(Resize, (8, 9, 10), shared_range=True),
        partial(ResampleToFixed),
        partial(ResampleToFixed, spacing=3.5),
    ],
)
def test_estimated_memory_is_what_the_cache_takes(prepare, tmp_path):
    write_task02(tmp_path)
    grid = prepare()
    dataset = partial(list_task02_pairs, root=str(tmp_path), prepare=grid)
    report = validate_dataset(dataset, ["train"], thorough=False)
    for index in range(len(pairs := dataset("train"))):
        pairs[index]
    assert report.cache_megabytes[report.dataset_splits[0]] == pytest.approx(
        grid.cache.used / 1e6, rel=0.02, abs=0.003
    )


def test_a_cache_that_is_too_small_gives_a_warning(tree):
    prepare = CropOrPad(SHAPE, megabytes=0.02)
    warnings = validate_dataset(make_dataset(tree, prepare), ["train"], thorough=False).warnings
    assert ["prepare.megabytes" in warning for warning in warnings] == [True]


def record_reads(monkeypatch):
    read = []

    def measure_and_count(kind, path):
        read.append(path.name)
        return compute_image_stats(kind, path)

    monkeypatch.setattr(image_stats, "compute_image_stats", measure_and_count)
    return read


def test_only_changed_and_faulty_files_are_read_again(tree, monkeypatch):
    read = record_reads(monkeypatch)
    truncate(path_of(tree, "img", 3))
    first = validate_dataset(make_dataset(tree), thorough=False)
    assert len(read) == 2 * len(NUMBERS)
    read.clear()
    again = validate_dataset(make_dataset(tree), thorough=False)
    assert read == ["hippocampus_003.nii.gz"]
    assert again.errors == first.errors
    assert again.summaries.keys() == first.summaries.keys()
    for case, summary in again.summaries.items():
        assert summary.labels == first.summaries[case].labels
        assert summary.image == first.summaries[case].image
    read.clear()
    os.utime(path_of(tree, "label", 4), ns=(1, 1))
    validate_dataset(make_dataset(tree), thorough=False)
    assert sorted(read) == ["hippocampus_003.nii.gz", "hippocampus_004.nii.gz"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1, "files": {"x": 1}}', "{}"])
def test_a_damaged_statistics_cache_is_ignored(content, tree, monkeypatch):
    image_stats.get_cache_path().parent.mkdir(parents=True)
    image_stats.get_cache_path().write_text(content)
    read = record_reads(monkeypatch)
    assert not validate_dataset(make_dataset(tree)).errors
    assert len(read) == 2 * len(NUMBERS)
    validate_dataset(make_dataset(tree))
    assert len(read) == 2 * len(NUMBERS)


def test_an_unwritable_statistics_cache_is_ignored(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not validate_dataset(make_dataset(tree)).errors


@pytest.mark.parametrize("order", "CF")
def test_statistics_do_not_depend_on_memory_layout(order):
    array = np.arange(60.0).reshape(3, 4, 5)
    assert compute_digest(array) == compute_digest(np.asarray(array, order=order))
    assert compute_digest(array) != compute_digest(array.reshape(5, 4, 3))
    assert compute_digest(array) != compute_digest(array + 1)
    expected = [0, *np.percentile(array, (0.5, 99.5)), 59]
    assert compute_quantiles(np.asarray(array, order=order)) == pytest.approx(expected)


class GeneratedPairs(torch.utils.data.Dataset):
    """A data set that generates its items."""

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
        ({"moving": torch.full((1, 12, 10), torch.nan)}, "'moving' contains NaN"),
        ({"moving": torch.zeros(1, 12, 9)}, "'moving' has shape (1, 12, 9)"),
        ({"fixed": torch.zeros(1, 12, 10)}, "'fixed' is 0 everywhere"),
        ({"spacing": None}, "no 'spacing'"),
        ({"fixed_points": torch.tensor([[3.0, 4.0], [3.0, 9.6]])}, "1 of 2 fixed landmarks"),
        ({"fixed_points": torch.zeros(2, 3)}, "'fixed_points' has shape (2, 3)"),
        ({"displacement": torch.zeros(3, 12, 10)}, "'displacement' has shape"),
        ({"fixed_labels": torch.zeros(12, 10)}, "'fixed_labels' has shape"),
    ],
)
def test_generated_pairs_are_checked(changes, reason):
    assert not validate_dataset(lambda split: GeneratedPairs()).errors
    errors = validate_dataset(lambda split: GeneratedPairs(**changes), ["val"]).errors
    assert any(reason in error and "val, item 0" in error for error in errors)


def test_phantom_pairs_are_summarized():
    report = validate_dataset(partial(PhantomPairs, ndim=2, shape=[24, 20], num_pairs=4), ["train"])
    assert not report.errors
    summary = summarize_split(report, report.dataset_splits[0])
    assert (summary["pairs"], summary["samples"]) == ("4", "3")
    assert summary["prepared shape"] == "24 x 20"
    assert "displacement" in summary["keys"]


def test_training_is_refused_and_each_error_printed_on_its_own_line(tree, capsys, caplog):
    caplog.set_level("INFO")
    data = PairDataModule(make_dataset(tree))
    validate_data(data, full=False)
    assert capsys.readouterr() == ("", "")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data: 7 pairs of 5 cases, 0 MB")
    truncate(path_of(tree, "img", 1))
    with pytest.raises(UserError, match="hippocampus_001"):
        validate_data(data, full=False)
    assert capsys.readouterr().err == ""
    change_voxel(path_of(tree, "label", 287), -4)
    with pytest.raises(UserError, match="2 errors"):
        validate_data(data, full=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(f"hippocampus_{n}" in line for n, line in zip(("001", "287"), lines, strict=True))


def test_train_refuses_invalid_data_and_validate_data_prints_the_report(command, tmp_path):
    write_task04(tmp_path / "learn2reg2020")
    tree = tmp_path / "learn2reg2020" / "task_04"
    truncate(path_of(tree, "img", 1))
    change_voxel(path_of(tree, "label", 287), -4)
    arguments = ("train.py", "data=task04", f"data_root={tmp_path}", "run_dir=run")
    fonts = str(Path.home() / ".cache" / "matplotlib")  # lest they be searched for again
    done = command(*arguments, MPLCONFIGDIR=fonts)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert not (tmp_path / "outputs" / "run" / "checkpoints").exists()
    done = command(*arguments, "validate_data=true", MPLCONFIGDIR=fonts, COLUMNS="200")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stdout.splitlines()) == 2
    assert "12 x 14 x 10" in done.stdout
