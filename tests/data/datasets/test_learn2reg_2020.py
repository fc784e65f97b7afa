"""Learn2Reg 2020: small trees in the published form, what is listed and what is read."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets import learn2reg_2020
from regnet_lab.data.datasets.mixture import Mixture
from regnet_lab.data.preprocessing.functional import normalize_min_max, normalize_window
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed, Resize
from regnet_lab.errors import UserError
from tests.helpers.learn2reg_2020 import (
    MARKS,
    SHAPE,
    save,
    write_task01,
    write_task02,
    write_task03,
    write_task04,
)


def listed(fixed, moving):
    return fixed, moving


WRITERS = {1: write_task01, 2: write_task02, 3: write_task03, 4: write_task04}
TASKS = {
    1: learn2reg_2020.list_task01_pairs,
    2: learn2reg_2020.list_task02_pairs,
    3: learn2reg_2020.list_task03_pairs,
    4: learn2reg_2020.list_task04_pairs,
}


def names(pairs):
    return [(fixed.name, moving.name) for fixed, moving in pairs.case_pairs]


def patients(pairs):
    return {name.split("-")[0].removesuffix("_exp").removesuffix("_insp")
            for pair in names(pairs) for name in pair}  # fmt: skip


@pytest.mark.parametrize("task", [1, 2, 3, 4])
def test_training_and_validation_share_no_case_and_every_listed_file_exists(task, tmp_path):
    WRITERS[task](tmp_path)
    splits = {s: TASKS[task](s, tmp_path, listed) for s in ("train", "val", "test")}
    assert len(splits["train"])
    assert len(splits["val"])
    assert patients(splits["train"]).isdisjoint(patients(splits["val"]))
    assert names(splits["val"]) == names(splits["test"])
    for pairs in splits.values():
        for pair in pairs:
            for case in pair:
                points = [case.points.path] if case.points else []
                files = [f for f in (case.image, case.labels, case.mask, *points) if f]
                assert all(file.is_file() for file in files)


def test_task01_pairs_flair_with_ultrasound(tmp_path):
    write_task01(tmp_path)
    assert names(learn2reg_2020.list_task01_pairs("train", tmp_path, listed)) == [
        ("Case1-FLAIR-resize", "Case1-US-before-resize"),
        ("Case3-FLAIR-resize", "Case3-US-before-resize"),
    ]


def test_task02_fixes_expiration_and_adds_the_opposite_direction_on_request(tmp_path):
    write_task02(tmp_path)
    forward = names(learn2reg_2020.list_task02_pairs("train", tmp_path, listed))
    both_directions = names(
        learn2reg_2020.list_task02_pairs("train", tmp_path, listed, both_directions=True)
    )
    assert forward == [(f"case_{n:03d}_exp", f"case_{n:03d}_insp") for n in (1, 2, 3)]
    assert both_directions == forward + [(moving, fixed) for fixed, moving in forward]
    val = names(learn2reg_2020.list_task02_pairs("val", tmp_path, listed, both_directions=True))
    assert val == [("case_004_exp", "case_004_insp")]


def test_task03_trains_on_all_ordered_pairs_of_what_is_left(tmp_path):
    write_task03(tmp_path)
    train = names(learn2reg_2020.list_task03_pairs("train", tmp_path, listed))
    left = [f"img{n:04d}" for n in (2, 3, 5, 6)]
    assert sorted(train) == sorted((a, b) for a in left for b in left if a != b)
    case = learn2reg_2020.list_task03_pairs("val", tmp_path, listed)[0][0]
    assert case.labels.name == "label0001.nii.gz"


def test_the_task_folder_itself_may_be_the_root(tmp_path):
    write_task04(tmp_path)
    inside = names(learn2reg_2020.list_task04_pairs("train", tmp_path / "task_04", listed))
    assert inside == names(learn2reg_2020.list_task04_pairs("train", tmp_path, listed))
    assert len(inside) == 6


def test_published_test_cases_are_the_test_split_even_without_labels(tmp_path):
    write_task04(tmp_path)
    write_task04(tmp_path / "Test", numbers=(7, 8), held_out=((7, 8),))
    for path in (tmp_path / "Test" / "task_04" / "Training" / "label").iterdir():
        path.unlink()
    (tmp_path / "Test" / "task_04" / "Training" / "label").rmdir()
    options = {"root": tmp_path, "prepare": listed, "test_root": tmp_path / "Test"}
    test = learn2reg_2020.list_task04_pairs("test", **options)
    assert names(test) == [("hippocampus_007", "hippocampus_008")]
    assert test[0][0].labels is None
    assert names(learn2reg_2020.list_task04_pairs("val", **options)) == [
        ("hippocampus_250", "hippocampus_287")
    ]


def test_task01_landmarks_are_read_from_world_coordinates(tmp_path):
    write_task01(tmp_path, inner="")
    pair = learn2reg_2020.list_task01_pairs(
        "val", tmp_path, ResampleToFixed(intensity=normalize_min_max)
    )[0]
    assert np.allclose(pair["fixed_points"], MARKS[:, :3], atol=1e-3)
    assert np.allclose(pair["moving_points"], MARKS[:, 3:], atol=1e-3)


def test_task02_points_stay_on_what_they_mark(tmp_path):
    write_task02(tmp_path)
    grid = CropOrPad(
        [16, 16, 16], intensity=lambda array, like=None: normalize_window(array, -1000, 3000)
    )
    pair = learn2reg_2020.list_task02_pairs("val", tmp_path, grid)[0]
    for side in ("fixed", "moving"):
        where = pair[f"{side}_points"].round().long().T
        assert (pair[side][0][tuple(where)] == 1).all()
        assert (pair[f"{side}_mask"] > 0).sum() == 8 * 10 * 6
    assert torch.allclose(pair["spacing"], torch.tensor([1.75, 1.25, 1.75]))


def test_published_rule_takes_the_fixed_range_and_the_whole_field_of_view(tmp_path):
    write_task02(tmp_path)
    folder = tmp_path / "task_02" / "training" / "scans"
    fixed = nibabel.load(folder / "case_004_exp.nii.gz").get_fdata()
    save(folder / "case_004_insp.nii.gz", (fixed / 2).astype(np.float32))
    shape = np.array([24, 28, 15])
    pair = learn2reg_2020.list_task02_pairs(
        "val", tmp_path, Resize(shape.tolist(), intensity=normalize_min_max, shared_range=True)
    )[0]
    factor = shape / SHAPE
    for side, image in (("fixed", fixed), ("moving", fixed / 2)):
        ranged = (image - fixed.min()) / np.ptp(fixed)
        expected = ndimage.zoom(ranged, factor, order=1, mode="nearest", grid_mode=True)
        assert np.allclose(pair[side][0], expected, atol=1e-5)
    assert np.allclose(pair["spacing"], [1.75, 1.25, 1.75] / factor)
    assert np.allclose(pair["fixed_points"], (MARKS[:, :3] + 0.5) * factor - 0.5, atol=1e-4)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "pairs_val.csv").unlink(), "pairs_val.csv: this file is missing"),
        (lambda f: (f / "pairs_val.csv").write_text("fix,mov\n1,4\n"), "has no column 'fixed'"),
        (lambda f: (f / "pairs_val.csv").write_text("fixed,moving\n1,x\n"), "whole number"),
        (lambda f: (f / "pairs_val.csv").write_bytes(b"\xff\xfe\x00\x81"), "pairs_val.csv"),
        (lambda f: (f / "pairs_val.csv").write_text(""), "pairs_val.csv"),
        (lambda f: (f / "pairs_val.csv").write_text("fixed,moving\n1,99\n"), "no image of case 99"),
        (lambda f: [p.unlink() for p in (f / "Training/img").iterdir()], "nothing in this folder"),
    ],
)
def test_a_damaged_tree_is_one_sentence(damage, sentence, tmp_path):
    write_task03(tmp_path)
    damage(tmp_path / "task_03")
    with pytest.raises(UserError, match=sentence) as error:
        learn2reg_2020.list_task03_pairs("train", tmp_path, listed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "gone",
    ["scans/case_004_insp.nii.gz", "scans/case_004_exp.nii.gz", "lungMasks/case_004_exp.nii.gz"],
)
def test_a_missing_partner_is_named_when_it_is_read(gone, tmp_path):
    write_task02(tmp_path)
    path = tmp_path / "task_02" / "training" / gone
    path.unlink()
    pairs = learn2reg_2020.list_task02_pairs("val", tmp_path, CropOrPad(SHAPE))
    with pytest.raises(UserError, match=f"{path.name}.*missing"):
        pairs[0]


def test_mixture_draws_every_data_set_equally_often(tmp_path):
    for writer in (write_task02, write_task03, write_task04):
        writer(tmp_path)
    parts = {f"task0{n}": lambda split, n=n: TASKS[n](split, tmp_path, listed) for n in (2, 3, 4)}
    mixed = Mixture("train", parts)
    places = [mixed.locate(i) for i in range(len(mixed))]
    assert len(mixed) == 3 * 12
    assert all(sum(name == part for name, _ in places) == 12 for part in parts)
    assert {item for name, item in places if name == "task03"} == set(range(12))
    assert {item for name, item in places if name == "task02"} == set(range(3))
    val = Mixture("val", parts)
    assert [val.locate(i) for i in range(len(val))] == [
        ("task02", 0), ("task03", 0), ("task03", 1), ("task04", 0),
    ]  # fmt: skip
    with pytest.raises(IndexError):
        val.locate(len(val))


def test_mixture_keeps_each_grid_and_names_the_data_set(tmp_path):
    write_task02(tmp_path)
    write_task04(tmp_path)
    parts = {
        "lung": lambda split: learn2reg_2020.list_task02_pairs(
            split, tmp_path, CropOrPad([8, 16, 8])
        ),
        "hippocampus": lambda split: learn2reg_2020.list_task04_pairs(
            split, tmp_path, CropOrPad(SHAPE)
        ),
    }
    lung, hippocampus = Mixture("val", parts)
    assert lung["fixed"].shape == (1, 8, 16, 8)
    assert hippocampus["fixed"].shape == (1, *SHAPE)
    assert hippocampus["name"] == "hippocampus_hippocampus_250_hippocampus_287"


def test_mixture_refuses_a_data_set_without_training_pairs():
    with pytest.raises(UserError, match="'empty' has no pairs"):
        Mixture("train", {"empty": lambda split: []})


@pytest.mark.parametrize("preset", ["", "_2020"])
@pytest.mark.parametrize("task", ["task01", "task02", "task03", "task04", "tasks234"])
def test_every_preset_lists_and_reads(task, preset, tmp_path, composed):
    for writer in WRITERS.values():
        writer(tmp_path / "learn2reg2020")
    cfg = composed("train", f"data={task}{preset}", f"data_root={tmp_path}")
    for part in cfg.data.dataset.get("datasets", {"": cfg.data.dataset}).values():
        assert len(part.prepare.shape) == cfg.ndim
        assert preset != "_2020" or part.prepare.shape == [64, 64, 64]
        part.prepare.shape = [16, 18, 14]
    dataset = instantiate_config(cfg.data.dataset)
    assert len(dataset(split="train"))
    pair = dataset(split="val")[0]
    assert pair["fixed"].shape == pair["moving"].shape == (1, 16, 18, 14)
    assert 0.5 < pair["fixed"].max() <= 1
    assert pair["fixed"].min() >= 0


@pytest.mark.skipif("REGNET_LAB_DATA" not in os.environ, reason="REGNET_LAB_DATA is not set")
def test_real_hippocampi_are_listed_without_leakage():
    root = Path(os.environ["REGNET_LAB_DATA"]) / "learn2reg2020"
    train, val = (
        learn2reg_2020.list_task04_pairs(split, root, listed) for split in ("train", "val")
    )
    assert patients(train).isdisjoint(patients(val))
    assert all(case.image.is_file() and case.labels.is_file() for pair in val for case in pair)
