"""Learn2Reg submissions: written, read back and judged; damaged ones named; archives contained."""

import gzip
import io
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import surface_distance
import torch
from pytorch_lightning import Callback, Trainer
from scipy import ndimage
from torch import nn
from torch.utils.data import DataLoader

from regnet_lab.data.case import CasePairs
from regnet_lab.data.datasets import learn2reg_2020
from regnet_lab.data.datasets.learn2reg import l2r as release
from regnet_lab.data.datasets.mixture import Mixed
from regnet_lab.data.preprocessing.functional import scaling
from regnet_lab.data.preprocessing.grids import CentredGrid, StretchedGrid, WorldGrid
from regnet_lab.errors import UserError
from regnet_lab.evaluation import setup
from regnet_lab.evaluation.submission import (
    PublishedPairs,
    Submission,
    SubmissionWriter,
    Submitted,
    formats,
    serialization,
)
from regnet_lab.evaluation.submission.original_grid import carried, entries
from regnet_lab.metrics import l2r
from regnet_lab.training.module import RegistrationModule

SHAPE = (12, 14, 10)
AFFINE = np.diag([2.0, 1.0, 1.5, 1.0])
MARKS = np.array([[3, 4, 5, 4, 5, 4], [8, 9, 6, 7, 9, 5], [6, 3, 4, 7, 3, 5]], float)


# --- small data sets in the published layouts


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def save_case(image, label, seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    save(image, rng.integers(0, 1000, shape).astype(np.int16))
    blobs = ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 2, 2, 2)).argmax(0)
    save(label, blobs.astype(np.uint8))


def pairs_table(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{fixed},{moving}\n" for fixed, moving in rows)
    (folder / "pairs_val.csv").write_text(f"fixed,moving\n{lines}")


def write_task(root, task, name, label="{}", shape=SHAPE, pairs=((7, 11), (11, 20))):
    folder = root / task
    pairs_table(folder, *pairs)
    for number in (1, 7, 11, 20):
        file = name.format(number)
        save_case(
            folder / "Training/img" / file, folder / "Training/label" / label.format(file),
            number, shape,
        )  # fmt: skip
    return folder


def write_task04(root, **more):
    return write_task(root, "task_04", "hippocampus_{:03d}.nii.gz", **more)


def write_task03(root):
    folder = write_task(root, "task_03", "img{:04d}.nii.gz")
    for file in (folder / "Training/label").iterdir():
        file.rename(file.with_name(file.name.replace("img", "label")))
    return folder


def write_task02(root):
    folder = root / "task_02"
    pairs_table(folder, (4, 4))
    for phase, seed in (("exp", 1), ("insp", 2)):
        name = f"case_004_{phase}.nii.gz"
        save_case(folder / "training/scans" / name, folder / "training/lungMasks" / name, seed)
    (folder / "training/lms").mkdir()
    np.savetxt(folder / "training/lms/case_004.txt", MARKS, fmt="%.1f", delimiter=",")
    return folder


def write_release(root, name="OASIS", modalities=(0, 0), shape=SHAPE):
    images = [f"{name}_{n:04d}_{m:04d}" for n, m in zip((3, 9), modalities, strict=True)]
    for seed, image in enumerate(images):
        save_case(root / f"imagesTr/{image}.nii.gz", root / f"labelsTr/{image}.nii.gz", seed, shape)
    fixed, moving = (f"./imagesTr/{image}.nii.gz" for image in images)
    content = {
        "name": name, "pairings": "unpaired", "tensorImageShape": {"0": list(shape)},
        "training": [{"image": fixed}, {"image": moving}],
        "registration_val": [{"fixed": fixed, "moving": moving}],
    }  # fmt: skip
    (root / f"{name}_dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def small(monkeypatch):
    """Tasks 2 and 3 published at SHAPE."""
    tasks = [
        formats.Task(t.title, t.pattern, SHAPE, t.folders) if t.title.endswith(" CT") else t
        for t in formats.TASKS
    ]
    monkeypatch.setattr(formats, "TASKS", tuple(tasks))


# --- a model whose answer is no trivial one


class Wave(nn.Module):
    """Displacements that differ in every axis, in sixteenths, which float16 holds exactly."""

    def forward(self, fixed, moving):
        x = np.indices(fixed.shape[2:])
        u = np.stack([1.5 * np.sin(x[0] / 5 + x[1] / 3), 2 * np.cos(x[2] / 4), x[0] / 10 - 2])
        return [torch.from_numpy(np.round(16 * u) / 16).float()[None]]


class Records(Callback):
    def __init__(self):
        self.rows = []

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.rows += [r for r in outputs["records"] if r["method"] != "identity"]


def judge(module, dataset, *callbacks):
    records = Records()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[records, *callbacks], enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, DataLoader(dataset), verbose=False)
    return records.rows


def write(dataset, folder, year, **more):
    """The records of judging the wave, and a submission of it."""
    module = RegistrationModule(Wave(), {}, None, score=l2r, name="wave")
    return judge(module, dataset, SubmissionWriter(year, str(folder), **more))


def read_back(path, dataset):
    pairs = PublishedPairs(dataset)
    return judge(Submitted(Submission(path, pairs.entries), l2r, "wave"), pairs)


def without_cost(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_mb")} for r in records]


def task04(root, shape=(64, 64, 64)):
    return learn2reg_2020.task04("val", write_task04(root), CentredGrid(shape))


# --- names and shapes


@pytest.mark.parametrize(
    ("name", "title", "image"),
    [
        ("Case12-US-before-resize", "EASY-RESECT", (12, 0)),
        ("case_004_insp", "lung CT", (4, 0)),
        ("img0037", "abdomen CT", (37, 0)),
        ("hippocampus_250", "hippocampus", (250, 0)),
        ("OASIS_0395_0000", "OASIS", (395, 0)),
        ("AbdomenMRCT_0002_0001", "AbdomenMRCT", (2, 1)),
        ("NLST_0101_0001", "this data set", (101, 1)),
        ("L2R24_LUMIR_3455_0000", "this data set", (3455, 0)),
    ],
)
def test_a_case_is_known_by_its_name(name, title, image):
    task, found = formats.identify(name)
    assert (task.title, found) == (title, image)


@pytest.mark.parametrize("name", ["OASIS_OAS1_0001_MR1", "phantom", "P12-3", "img12b"])
def test_another_case_is_none_of_learn2reg(name):
    with pytest.raises(UserError, match=f"{name} is no case of Learn2Reg"):
        formats.identify(name)


@pytest.mark.parametrize(
    ("modalities", "names", "expected"),
    [
        ((0, 0), "auto", ["disp_0003_0021"]),
        ((0, 1), "auto", ["disp_0003_0021"]),
        ((0, 2), "auto", ["disp_0003_0000_0021_0002"]),
        ((1, 0), "auto", ["disp_0003_0001_0021_0000"]),
        ((0, 0), "long", ["disp_0003_0000_0021_0000"]),
        ((1, 0), "short", ["disp_0003_0021"]),
        ((0, 1), "both", ["disp_0003_0021", "disp_0003_0000_0021_0001"]),
    ],
)
def test_files_have_the_short_or_the_long_name(modalities, names, expected):
    assert formats.stems((3, modalities[0]), (21, modalities[1]), names) == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Case1-FLAIR-resize", (3, 128, 128, 144)),
        ("case_001_exp", (3, 96, 96, 104)),
        ("img0001", (3, 96, 80, 128)),
        ("hippocampus_001", (3, 64, 64, 64)),
    ],
)
def test_arrays_of_2020_have_the_published_shapes(name, shape):
    task, _ = formats.identify(name)
    form = formats.format_of(2020)
    assert form.shape(task, task.shape) == shape


def test_a_half_array_holds_full_resolution_voxels_and_is_read_as_the_evaluator_reads_it():
    x = np.indices((16, 12, 20)).astype(np.float32)
    u = np.stack([3 + 0 * x[0], np.sin(x[2] / 6), x[1] ** 2 / 50]).astype(np.float32)
    task, _ = formats.identify("img0001")
    form = formats.format_of(2021)
    content = serialization.npz_bytes(form.pack(task, u))
    with np.load(io.BytesIO(content)) as file:
        assert file.files == ["arr_0"]
        half = file["arr_0"]
    assert half.dtype == np.float16
    assert half.shape == (3, 8, 6, 10)
    assert (half[0] == 3).all()
    expected = [ndimage.zoom(half[i].astype("float32"), 2, order=2) for i in range(3)]
    again = form.decode(task, (16, 12, 20), "x.npz", content)
    np.testing.assert_array_equal(again, expected)
    assert abs(again - u)[:, 3:-3, 3:-3, 3:-3].max() < 0.03
    assert abs(u).max() > 2


def test_years_since_2022_share_a_form_and_before_2020_there_was_no_challenge():
    assert formats.format_of(2025) == formats.format_of(2022)
    with pytest.raises(UserError, match="submission=2019"):
        formats.format_of(2019)


# --- from the grid of a model to the published one


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_a_crop_is_carried_back_exactly_and_its_border_continues(shape):
    ndim = len(shape)
    u = np.random.default_rng(0).normal(size=(ndim, *shape)).astype(np.float32)
    one, offset = np.ones(ndim), np.arange(2, 2 + ndim)
    crop, whole = scaling(one, offset), scaling(one, 0 * one)
    outer = tuple(n + 6 for n in shape)
    found = carried(u, (crop, crop), (whole, whole), outer)
    expected = np.pad(u, [(0, 0), *((o, 6 - o) for o in offset)], mode="edge")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_displacement_is_carried_between_any_grids_in_closed_form(ndim):
    rng = np.random.default_rng(ndim)

    def matrix(size):
        result = np.eye(ndim + 1)
        result[:-1, :-1] = np.diag(size) + 0.03 * rng.normal(size=(ndim, ndim))
        result[:-1, -1] = rng.normal(size=ndim)
        return result

    prepared = matrix([0.6, 0.7, 0.8][:ndim]), matrix([0.8, 0.7, 0.6][:ndim])
    wanted = matrix([1.0, 0.9, 1.1][:ndim]), matrix([1.2, 1.1, 1.0][:ndim])
    slope, shift = 0.05 * rng.normal(size=(ndim, ndim)), rng.normal(size=ndim)
    big, shape = (40,) * ndim, (12, 14, 10)[:ndim]
    grid = np.indices(big).reshape(ndim, -1)
    u = (slope @ grid + shift[:, None]).reshape(ndim, *big).astype(np.float32)

    def apply(m, x):
        return m[:-1, :-1] @ x + m[:-1, -1:]

    y = np.indices(shape).reshape(ndim, -1)
    x = apply(np.linalg.inv(prepared[0]) @ wanted[0], y)
    moving = apply(prepared[1], x + slope @ x + shift[:, None])
    expected = apply(np.linalg.inv(wanted[1]), moving) - y
    inside = ((x > 1.5) & (x < 37)).all(0)
    assert inside.sum() > 20
    found = carried(u, prepared, wanted, shape).reshape(ndim, -1)
    np.testing.assert_allclose(found[:, inside], expected[:, inside], atol=2e-3)


PREPARATIONS = [
    CentredGrid([16, 12, 20], cache=None),
    CentredGrid([16, 20, 14], spacing=[1, 1, 1], cache=None),
    StretchedGrid([24, 20, 15], cache=None),
    WorldGrid([16, 20, 20], spacing=1, cache=None),
    WorldGrid(cache=None),
]


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda p: f"{type(p).__name__}{p.shape}")
def test_landmarks_are_as_many_millimetres_off_on_the_published_grid(prepare, small, tmp_path):
    pairs = learn2reg_2020.task02("val", write_task02(tmp_path), prepare)
    (entry,) = entries(pairs).values()
    seen, published = pairs[0], entry.published()
    assert tuple(published["fixed"].shape) == (1, *SHAPE)
    np.testing.assert_allclose(published["fixed_points"], MARKS[:, :3])
    np.testing.assert_allclose(published["moving_points"], MARKS[:, 3:])
    shift = np.array([1.25, -0.5, 2.0])
    u = np.broadcast_to(shift.reshape(3, 1, 1, 1), (3, *seen["fixed"].shape[1:]))
    ours = entry.carried(u.astype(np.float32))[(slice(None), *MARKS[:, :3].astype(int).T)].T
    errors = [
        (pair["fixed_points"].numpy() + at - pair["moving_points"].numpy())
        * pair["spacing"].numpy()
        for pair, at in ((seen, shift), (published, ours))
    ]
    np.testing.assert_allclose(*errors, atol=1e-3)


# --- written, read back, judged


@pytest.mark.parametrize("year", [2020, 2022])
def test_a_submission_is_judged_as_the_model_was_in_memory(year, tmp_path):
    data = task04(tmp_path)
    judged = write(data, tmp_path / "out/mine", year)
    assert len(judged) == 2
    assert judged[0]["dice"] < 1
    assert judged[0]["sdlogj"] > 0
    for path in (tmp_path / "out/mine", tmp_path / "out/mine.zip"):
        assert read_back(path, data) == without_cost(judged)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine", "mine.zip"]


def test_a_cropped_model_is_judged_on_the_published_grid(tmp_path):
    data = task04(tmp_path, shape=(24, 24, 24))
    judged = write(data, tmp_path / "mine", 2020)
    again = read_back(tmp_path / "mine", data)
    assert [r["dice"] for r in again] == [r["dice"] for r in judged]
    assert [r["hd95_vox"] for r in again] == [r["hd95_vox"] for r in judged]
    assert [r["sdlogj"] for r in again] != [r["sdlogj"] for r in judged]  # over another region
    with np.load(tmp_path / "mine/task_04/disp_0007_0011.npz") as file:
        assert file["arr_0"].shape == (3, 64, 64, 64)
        assert file["arr_0"].dtype == np.float16
        (wave,) = Wave()(torch.zeros(1, 1, 24, 24, 24), None)
        np.testing.assert_array_equal(file["arr_0"][:, 20:44, 20:44, 20:44], wave[0])


def official_dice(fixed, moving, u):
    """What the official evaluator does with labels, written down once more."""
    warped = ndimage.map_coordinates(moving, np.indices(fixed.shape) + u, order=0)
    scores = [
        2 * ((fixed == k) & (warped == k)).sum() / ((fixed == k).sum() + (warped == k).sum())
        for k in (1, 2)
    ]
    return np.mean(scores)


def test_task03_is_halved_and_judged_as_the_evaluator_of_2020_would(small, tmp_path):
    folder = write_task03(tmp_path)
    data = learn2reg_2020.task03("val", folder, CentredGrid([16, 16, 16]))
    write(data, tmp_path / "mine", 2020)
    for record, (fixed, moving) in zip(
        read_back(tmp_path / "mine.zip", data), ((7, 11), (11, 20)), strict=True
    ):
        with np.load(tmp_path / f"mine/task_03/disp_{fixed:04d}_{moving:04d}.npz") as file:
            half = file["arr_0"].astype("float32")
        assert half.shape == (3, 6, 7, 5)
        u = np.array([ndimage.zoom(half[i], 2, order=2) for i in range(3)])
        labels = [
            np.asarray(nibabel.load(folder / f"Training/label/label{n:04d}.nii.gz").dataobj)
            for n in (fixed, moving)
        ]
        assert record["dice"] == pytest.approx(official_dice(*labels, u), abs=1e-12)


def official(fixed, moving, u):
    """The official evaluator's numbers of two label maps and a displacement, in numpy and scipy."""
    warped = ndimage.map_coordinates(moving, np.indices(fixed.shape) + u, order=0)
    surfaces = [
        surface_distance.compute_surface_distances(fixed == k, warped == k, np.ones(3))
        for k in (1, 2)
    ]
    slope = np.empty((3, 3, *fixed.shape))
    for i, j in np.ndindex(3, 3):
        kernel = np.reshape([-0.5, 0, 0.5], np.where(np.arange(3) == j, 3, 1))
        slope[i, j] = ndimage.correlate(u[i], kernel, mode="constant") + (i == j)
    inner = np.moveaxis(slope, (0, 1), (-2, -1))[2:-2, 2:-2, 2:-2]
    return {
        "dice": official_dice(fixed, moving, u),
        "hd95_vox": np.mean(
            [surface_distance.compute_robust_hausdorff(found, 95.0) for found in surfaces]
        ),
        "sdlogj": np.log((np.linalg.det(inner) + 3).clip(1e-9, 1e9)).std(),
    }


def of_2020(root):
    """Task 4, how it is written, and how an evaluator reads a displacement of a pair."""

    def displacement(folder, fixed, moving):
        with np.load(folder / f"task_04/disp_{fixed:04d}_{moving:04d}.npz") as file:
            return file["arr_0"].astype("float32")

    data = learn2reg_2020.task04(
        "val", write_task04(root, shape=(64, 64, 64)), CentredGrid([64] * 3)
    )
    label = str(root / "task_04/Training/label/hippocampus_{:03d}.nii.gz")
    return data, 2020, displacement, label, [(7, 11), (11, 20)]


def of_2022(root):
    """The same of a release since 2022."""

    def displacement(folder, fixed, moving):
        file = nibabel.load(folder / f"disp_{fixed:04d}_{moving:04d}.nii.gz")
        return np.moveaxis(file.get_fdata().astype("float32"), -1, 0)

    data = release("val", write_release(root), CentredGrid(SHAPE))
    return data, 2022, displacement, str(root / "labelsTr/OASIS_{:04d}_0000.nii.gz"), [(3, 9)]


@pytest.mark.parametrize("published", [of_2020, of_2022])
def test_files_are_judged_as_the_official_evaluator_judges_them(published, tmp_path):
    data, year, displacement, label, pairs = published(tmp_path)
    write(data, tmp_path / "mine", year)
    records = read_back(tmp_path / "mine.zip", data)
    for record, pair in zip(records, pairs, strict=True):
        images = [np.asarray(nibabel.load(label.format(n)).dataobj) for n in pair]
        expected = official(*images, displacement(tmp_path / "mine", *pair))
        assert 0.1 < expected["dice"] < 0.9
        assert {k: record[k] for k in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "modalities", "names", "files"),
    [
        ("OASIS", (0, 0), "auto", ["disp_0003_0009.nii.gz"]),
        ("OASIS", (0, 0), "both", ["disp_0003_0000_0009_0000.nii.gz", "disp_0003_0009.nii.gz"]),
        ("CuRIOUS", (0, 2), "auto", ["disp_0003_0000_0009_0002.nii.gz"]),
        ("NLST", (0, 1), "long", ["disp_0003_0000_0009_0001.nii.gz"]),
    ],
)
def test_since_2022_arrays_are_whole_channel_last_and_names_as_asked(
    name, modalities, names, files, tmp_path
):
    data = release("val", write_release(tmp_path, name, modalities), CentredGrid(SHAPE))
    judged = write(data, tmp_path / "mine", 2022, names=names)
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert archive.namelist() == files
    image = nibabel.load(tmp_path / "mine" / files[0])
    assert image.shape == (*SHAPE, 3)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, np.eye(4))
    (wave,) = Wave()(torch.zeros(1, 1, *SHAPE), None)
    np.testing.assert_array_equal(image.get_fdata(), np.moveaxis(wave[0].numpy(), 0, -1))
    assert read_back(tmp_path / "mine", data) == without_cost(judged)


def test_another_s_npz_of_any_number_type_is_read_since_2022(tmp_path):
    data = release("val", write_release(tmp_path), CentredGrid(SHAPE))
    judged = write(data, tmp_path / "mine", 2022)
    u = np.asarray(nibabel.load(tmp_path / "mine/disp_0003_0009.nii.gz").dataobj)
    (tmp_path / "theirs").mkdir()
    long = tmp_path / "theirs/disp_0003_0000_0009_0000.npz"
    np.savez(long, field=u.astype(np.float64))
    assert read_back(tmp_path / "theirs", data) == without_cost(judged)


def test_2021_has_a_folder_for_each_of_its_tasks(tmp_path):
    data = release("val", write_release(tmp_path), CentredGrid(SHAPE))
    write(data, tmp_path / "mine", 2021)
    with np.load(tmp_path / "mine/task_03/disp_0003_0009.npz") as file:
        assert file["arr_0"].shape == (3, 6, 7, 5)
    assert read_back(tmp_path / "mine", data)[0]["case"] == "OASIS_0003_0000_OASIS_0009_0000"


def test_tasks_of_several_runs_and_of_a_mixture_come_together_in_one_zip(small, tmp_path):
    data = {
        "task03": learn2reg_2020.task03("val", write_task03(tmp_path), CentredGrid([8, 8, 8])),
        "task02": learn2reg_2020.task02("val", write_task02(tmp_path), CentredGrid([8, 8, 8])),
    }
    mixture = Mixed("val", {name: partial(lambda split, d: d, d=d) for name, d in data.items()})
    write(mixture, tmp_path / "mine", 2020)
    write(task04(tmp_path, shape=(8, 8, 8)), tmp_path / "mine", 2020)
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert archive.namelist() == [
            "task_02/disp_0004_0004.npz",
            "task_03/disp_0007_0011.npz",
            "task_03/disp_0011_0020.npz",
            "task_04/disp_0007_0011.npz",
            "task_04/disp_0011_0020.npz",
        ]
    cases = [r["case"] for r in read_back(tmp_path / "mine.zip", mixture)]
    assert cases[-1] == "task02_case_004_exp_case_004_insp"
    with pytest.raises(UserError, match="2022 takes one data set"):
        write(mixture, tmp_path / "other", 2022)


def test_an_earlier_submission_stays_whole_when_a_later_one_fails(tmp_path):
    data = task04(tmp_path, shape=(8, 8, 8))
    write(data, tmp_path / "mine", 2020)
    before = (tmp_path / "mine.zip").read_bytes()

    class Diverged(Wave):
        def forward(self, fixed, moving):
            (u,) = super().forward(fixed, moving)
            self.seen = getattr(self, "seen", 0) + 1
            return [u if self.seen == 1 else u * np.nan]

    module = RegistrationModule(Diverged(), {}, None, score=lambda pair, u: {}, name="diverged")
    with pytest.raises(UserError, match=r"hippocampus_011_hippocampus_020: .*NaN"):
        judge(module, data, SubmissionWriter(2020, str(tmp_path / "mine")))
    assert (tmp_path / "mine.zip").read_bytes() == before
    assert len(list((tmp_path / "mine/task_04").iterdir())) == 2
    write(CasePairs(data.pairs[1:], data.prepare), tmp_path / "mine", 2020)
    assert os.listdir(tmp_path / "mine/task_04") == ["disp_0011_0020.npz"]
    assert not list(tmp_path.glob(".mine*"))


def test_a_submission_of_only_some_pairs_says_so(tmp_path, caplog):
    module = RegistrationModule(Wave(), {}, None, score=lambda pair, u: {}, name="wave")
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, limit_test_batches=1,
        enable_model_summary=False, callbacks=[SubmissionWriter(2020, str(tmp_path / "mine"))],
    )  # fmt: skip
    data = task04(tmp_path, shape=(8, 8, 8))
    trainer.test(module, DataLoader(data), verbose=False)
    assert "1 pairs are missing" in caplog.text
    with pytest.raises(UserError, match=r"disp_0011_0020\.npz is missing"):
        Submission(tmp_path / "mine.zip", entries(data))


# --- what cannot be submitted


def test_data_that_are_no_challenge_s_are_refused_before_anything_is_done(tmp_path, small):
    hippocampus = task04(tmp_path / "a", shape=(8, 8, 8))
    with pytest.raises(UserError, match="hippocampus was no task of that year"):
        write(hippocampus, tmp_path / "mine", 2021)
    large = learn2reg_2020.task04(
        "val", write_task04(tmp_path / "b", shape=(70, 8, 8)), CentredGrid([8, 8, 8])
    )
    with pytest.raises(UserError, match=r"\(70, 8, 8\), but \(64, 64, 64\) is published"):
        write(large, tmp_path / "mine", 2020)
    write_task(tmp_path / "c", "task_03", "img{:04d}.nii.gz", shape=(12, 14, 9))
    other = learn2reg_2020.task03("val", tmp_path / "c", CentredGrid([8, 8, 8]))
    with pytest.raises(UserError, match=r"img0007.*\(12, 14, 9\), but \(12, 14, 10\).*img0011"):
        write(other, tmp_path / "mine", 2020)
    odd = release("val", write_release(tmp_path / "d", shape=(12, 13, 10)), CentredGrid(SHAPE))
    with pytest.raises(UserError, match="12 x 13 x 10 voxels have no half"):
        write(odd, tmp_path / "mine", 2021)
    with pytest.raises(UserError, match="names=medium is unknown"):
        write(hippocampus, tmp_path / "mine", 2020, names="medium")
    assert not (tmp_path / "mine").exists()


# --- damaged submissions


@pytest.fixture
def submitted(tmp_path):
    """A good submission of 2020 for task 4 and its data."""
    data = task04(tmp_path, shape=(8, 8, 8))
    write(data, tmp_path / "mine", 2020)
    return tmp_path / "mine", PublishedPairs(data).entries


def npz(*arrays, **named):
    file = io.BytesIO()
    np.savez_compressed(file, *arrays, **named)
    return file.getvalue()


GOOD = np.zeros((3, 64, 64, 64), np.float16)
NAN = GOOD.copy()
NAN[1, 2, 3, 4] = np.nan


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"task_04/disp_0007_0011\.npz is missing"),
        (npz(GOOD.astype(np.float32)), r"disp_0007_0011\.npz: is float32, but must be float16"),
        (npz(GOOD[:, :32]), r"\(3, 32, 64, 64\), but must have \(3, 64, 64, 64\)"),
        (npz(np.moveaxis(GOOD, 0, -1)), r"\(64, 64, 64, 3\), but must have \(3, 64, 64, 64\)"),
        (npz(NAN), "1 numbers are NaN or infinite"),
        (npz(GOOD, GOOD), "must hold one array, not 2"),
        (npz(), "must hold one array, not 0"),
        (npz(np.zeros(10**7)), "far too large"),
        (npz(np.array([{}], dtype=object)), "cannot be read"),
        (npz(GOOD)[:-40], "cannot be read"),
        (b"", "cannot be read"),
        (b"not an archive", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named_in_one_sentence(content, sentence, submitted):
    folder, listed = submitted
    file = folder / "task_04/disp_0007_0011.npz"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        Submission(folder, listed)
    assert "\n" not in str(error.value)
    assert "disp_0011_0020" not in str(error.value)


def nifti(array):
    image = nibabel.Nifti1Image(array, np.eye(4))
    return gzip.compress(image.to_bytes(), mtime=0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (nifti(np.zeros((*SHAPE, 1, 3), np.float32)), r"must have \(12, 14, 10, 3\)"),
        (nifti(np.zeros((3, *SHAPE), np.float32)), r"must have \(12, 14, 10, 3\)"),
        (nifti(np.full((*SHAPE, 3), np.inf, np.float32)), "5040 numbers are NaN or infinite"),
        (gzip.compress(bytes(10**6), mtime=0), "far too large"),
        (nifti(np.zeros((*SHAPE, 3), np.float32))[:-30], "cannot be read"),
        (gzip.compress(b"no image", mtime=0), "cannot be read"),
        (b"no gzip", "cannot be read"),
    ],
)
def test_a_damaged_image_is_named_in_one_sentence(content, sentence, tmp_path):
    data = release("val", write_release(tmp_path), CentredGrid(SHAPE))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/disp_0003_0009.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"disp_0003_0009\.nii\.gz: .*{sentence}"):
        Submission(tmp_path / "mine", entries(data))


def test_all_faults_are_told_at_once(submitted):
    folder, listed = submitted
    (folder / "task_04/disp_0007_0011.npz").unlink()
    (folder / "task_04/disp_0011_0020.npz").write_bytes(npz(NAN))
    with pytest.raises(UserError, match=r"disp_0007_0011.* is missing; .*disp_0011_0020.*: 1 num"):
        Submission(folder, listed)


def test_a_submission_of_other_pairs_is_told_which_files_are_looked_for(submitted, tmp_path):
    folder, _ = submitted
    data = release("val", write_release(tmp_path / "other"), CentredGrid(SHAPE))
    names = r"such as task_03/disp_0003_0009\.npz or disp_0003_0009\.nii\.gz"
    with pytest.raises(UserError, match=f"holds no displacement of these pairs, {names}"):
        Submission(folder, entries(data))


@pytest.mark.parametrize(
    "name", ["../evil.npz", "/evil.npz", "a/../../evil.npz", "..\\evil.npz", "C:\\evil.npz"]
)
def test_a_zip_that_leaves_its_folder_is_refused(name, submitted):
    folder, listed = submitted
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"evil")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=r"mine\.zip: is refused.*evil\.npz"):
        Submission(archive, listed)
    assert sorted(folder.parent.rglob("*")) == before


def test_what_is_neither_a_folder_nor_a_zip_is_named(submitted):
    folder, listed = submitted
    with pytest.raises(UserError, match="submission=nowhere: there is no such folder or zip"):
        Submission("nowhere", listed)
    archive = folder.with_suffix(".zip")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"mine\.zip: is no zip"):
        Submission(archive, listed)


def test_a_zip_is_judged_without_being_unpacked(submitted, tmp_path, monkeypatch):
    folder, listed = submitted
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    submission = Submission(folder.with_suffix(".zip"), listed)
    name, entry = next(iter(listed.items()))
    assert submission.read(entry).shape == (3, 64, 64, 64)
    assert name == "hippocampus_007_hippocampus_011"


# --- the command


def test_the_command_writes_a_submission_and_judges_it(command, tmp_path):
    write_task04(tmp_path / "learn2reg2020")
    common = ["data=task04", f"data_root={tmp_path}", "trainer.enable_progress_bar=false",
              "trainer.accelerator=cpu", "pictures=0", "metrics=l2r"]  # fmt: skip
    done = command("evaluate.py", "model=identity", "submission=2020", "folder=first", *common)
    assert done.returncode == 0, done.stderr
    done = command(
        "evaluate.py", "submission=first/submission.zip", "folder=second", "name=theirs", *common
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "second/summary.json").read_text())
    assert set(summary) == {"cases", "identity", "theirs"}
    assert "seconds" not in summary["theirs"]
    assert summary["theirs"]["dice"] == summary["identity"]["dice"]
    assert not (tmp_path / "second/submission").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submission=theirs.zip"], "submission=<folder or zip> and data="),
        (["submission=theirs.zip", "data=synthetic"], "made in memory"),
        (["submission=2020"], "run=<folder>"),
    ],
)
def test_what_is_missing_to_judge_a_submission_is_said(arguments, sentence, composed):
    with pytest.raises(UserError, match=re.escape(sentence)):
        setup.judged(composed("evaluate", *arguments))


@pytest.mark.parametrize(
    ("choice", "writes"), [("null", False), ("2020", True), ("theirs.zip", False)]
)
def test_a_submission_is_written_only_where_it_is_a_year(choice, writes, composed, tmp_path):
    cfg = composed("evaluate", "model=identity", "data=synthetic", f"submission={choice}")
    found = [type(callback).__name__ for callback in setup.callbacks(cfg)]
    assert ("SubmissionWriter" in found) == writes


# --- real images


def test_real_hippocampi_are_judged_alike_in_memory_and_from_a_file(tmp_path):
    root = Path(os.environ.get("REGNET_LAB_DATA", "data")) / "learn2reg2020/task_04"
    if not root.is_dir():
        pytest.skip("set REGNET_LAB_DATA to the folder with learn2reg2020/task_04")
    data = learn2reg_2020.task04("val", root, CentredGrid([64, 64, 64]))
    two = CasePairs(data.pairs[:2], data.prepare)
    judged = write(two, tmp_path / "mine", 2020)
    assert read_back(tmp_path / "mine.zip", two) == without_cost(judged)
