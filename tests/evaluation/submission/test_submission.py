"""Learn2Reg submissions: written, read and scored; damaged files named; archives confined."""

import dataclasses
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

from regnet_lab.data.datasets import learn2reg_2020
from regnet_lab.data.datasets.base import CasePairs
from regnet_lab.data.datasets.learn2reg import list_learn2reg_pairs as release
from regnet_lab.data.datasets.mixture import Mixture
from regnet_lab.data.preprocessing.functional import make_scaling_matrix
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed, Resize
from regnet_lab.errors import UserError
from regnet_lab.evaluation import setup
from regnet_lab.evaluation.submission import (
    OriginalGridPairs,
    Submission,
    SubmissionModule,
    SubmissionWriter,
    formats,
    serialization,
)
from regnet_lab.evaluation.submission.original_grid import (
    list_challenge_pairs,
    resample_displacement,
)
from regnet_lab.metrics import score_learn2reg
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
    """Shrink the images of tasks 2 and 3 to SHAPE."""
    tasks = [
        dataclasses.replace(t, shape=SHAPE) if t.title.endswith(" CT") else t
        for t in formats.CHALLENGE_TASKS
    ]
    monkeypatch.setattr(formats, "CHALLENGE_TASKS", tuple(tasks))


# --- a model with a non-trivial displacement


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


def score_pairs(module, dataset, *callbacks):
    records = Records()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[records, *callbacks], enable_checkpointing=False,
    )  # fmt: skip
    trainer.test(module, DataLoader(dataset), verbose=False)
    return records.rows


def write_submission(dataset, folder, year, **more):
    """Score the wave, write its submission and return the records."""
    module = RegistrationModule(Wave(), {}, None, metrics=score_learn2reg, name="wave")
    return score_pairs(module, dataset, SubmissionWriter(year, str(folder), **more))


def score_submission(path, dataset):
    pairs = OriginalGridPairs(dataset)
    return score_pairs(
        SubmissionModule(Submission(path, pairs.challenge_pairs), score_learn2reg, "wave"), pairs
    )


def without_cost(records):
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_mb")} for r in records]


def task04(root, shape=(64, 64, 64)):
    return learn2reg_2020.list_task04_pairs("val", write_task04(root), CropOrPad(shape))


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
def test_a_case_is_identified_by_its_name(name, title, image):
    task, image_id = formats.identify_task(name)
    assert (task.title, image_id) == (title, image)


@pytest.mark.parametrize("name", ["OASIS_OAS1_0001_MR1", "phantom", "P12-3", "img12b"])
def test_other_cases_are_no_cases_of_learn2reg(name):
    with pytest.raises(UserError, match=f"{name} is no case of Learn2Reg"):
        formats.identify_task(name)


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
    assert formats.make_file_stems((3, modalities[0]), (21, modalities[1]), names) == expected


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
    task, _ = formats.identify_task(name)
    submission_format = formats.find_format(2020)
    assert submission_format.compute_shape(task, task.shape) == shape


def test_a_half_resolution_array_is_in_full_resolution_voxels_and_decoded_as_by_the_evaluator():
    x = np.indices((16, 12, 20)).astype(np.float32)
    u = np.stack([3 + 0 * x[0], np.sin(x[2] / 6), x[1] ** 2 / 50]).astype(np.float32)
    task, _ = formats.identify_task("img0001")
    submission_format = formats.find_format(2021)
    content = serialization.encode_npz(submission_format.pack(task, u))
    with np.load(io.BytesIO(content)) as file:
        assert file.files == ["arr_0"]
        half_resolution = file["arr_0"]
    assert half_resolution.dtype == np.float16
    assert half_resolution.shape == (3, 8, 6, 10)
    assert (half_resolution[0] == 3).all()
    expected = [ndimage.zoom(half_resolution[i].astype("float32"), 2, order=2) for i in range(3)]
    again = submission_format.decode(task, (16, 12, 20), "x.npz", content)
    np.testing.assert_array_equal(again, expected)
    assert abs(again - u)[:, 3:-3, 3:-3, 3:-3].max() < 0.03
    assert abs(u).max() > 2


def test_years_since_2022_share_a_format_and_before_2020_there_was_no_challenge():
    assert formats.find_format(2025) == formats.find_format(2022)
    with pytest.raises(UserError, match="submission=2019"):
        formats.find_format(2019)


# --- from the grid of a model to the original one


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_a_crop_is_resampled_exactly_and_its_border_continued(shape):
    ndim = len(shape)
    u = np.random.default_rng(0).normal(size=(ndim, *shape)).astype(np.float32)
    ones, offset = np.ones(ndim), np.arange(2, 2 + ndim)
    crop, whole = make_scaling_matrix(ones, offset), make_scaling_matrix(ones, 0 * ones)
    outer = tuple(n + 6 for n in shape)
    resampled = resample_displacement(u, (crop, crop), (whole, whole), outer)
    expected = np.pad(u, [(0, 0), *((o, 6 - o) for o in offset)], mode="edge")
    np.testing.assert_array_equal(resampled, expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_displacement_is_resampled_between_grids_as_in_closed_form(ndim):
    rng = np.random.default_rng(ndim)

    def matrix(size):
        result = np.eye(ndim + 1)
        result[:-1, :-1] = np.diag(size) + 0.03 * rng.normal(size=(ndim, ndim))
        result[:-1, -1] = rng.normal(size=ndim)
        return result

    prepared = matrix([0.6, 0.7, 0.8][:ndim]), matrix([0.8, 0.7, 0.6][:ndim])
    original = matrix([1.0, 0.9, 1.1][:ndim]), matrix([1.2, 1.1, 1.0][:ndim])
    slope, shift = 0.05 * rng.normal(size=(ndim, ndim)), rng.normal(size=ndim)
    big, shape = (40,) * ndim, (12, 14, 10)[:ndim]
    grid = np.indices(big).reshape(ndim, -1)
    u = (slope @ grid + shift[:, None]).reshape(ndim, *big).astype(np.float32)

    def apply(m, x):
        return m[:-1, :-1] @ x + m[:-1, -1:]

    y = np.indices(shape).reshape(ndim, -1)
    x = apply(np.linalg.inv(prepared[0]) @ original[0], y)
    moving = apply(prepared[1], x + slope @ x + shift[:, None])
    expected = apply(np.linalg.inv(original[1]), moving) - y
    inside = ((x > 1.5) & (x < 37)).all(0)
    assert inside.sum() > 20
    resampled = resample_displacement(u, prepared, original, shape).reshape(ndim, -1)
    np.testing.assert_allclose(resampled[:, inside], expected[:, inside], atol=2e-3)


PREPARATIONS = [
    CropOrPad([16, 12, 20], cache=None),
    CropOrPad([16, 20, 14], spacing=[1, 1, 1], cache=None),
    Resize([24, 20, 15], cache=None),
    ResampleToFixed([16, 20, 20], spacing=1, cache=None),
    ResampleToFixed(cache=None),
]


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda p: f"{type(p).__name__}{p.shape}")
def test_landmark_errors_in_millimetres_are_the_same_on_the_original_grid(prepare, small, tmp_path):
    pairs = learn2reg_2020.list_task02_pairs("val", write_task02(tmp_path), prepare)
    (entry,) = list_challenge_pairs(pairs).values()
    model_pair, original_pair = pairs[0], entry.read_original_pair()
    assert tuple(original_pair["fixed"].shape) == (1, *SHAPE)
    np.testing.assert_allclose(original_pair["fixed_points"], MARKS[:, :3])
    np.testing.assert_allclose(original_pair["moving_points"], MARKS[:, 3:])
    shift = np.array([1.25, -0.5, 2.0])
    u = np.broadcast_to(shift.reshape(3, 1, 1, 1), (3, *model_pair["fixed"].shape[1:]))
    ours = entry.resample_to_original(u.astype(np.float32))[
        (slice(None), *MARKS[:, :3].astype(int).T)
    ].T
    errors = [
        (pair["fixed_points"].numpy() + at - pair["moving_points"].numpy())
        * pair["spacing"].numpy()
        for pair, at in ((model_pair, shift), (original_pair, ours))
    ]
    np.testing.assert_allclose(*errors, atol=1e-3)


# --- write, read, score


@pytest.mark.parametrize("year", [2020, 2022])
def test_a_submission_has_the_scores_of_the_model(year, tmp_path):
    data = task04(tmp_path)
    records = write_submission(data, tmp_path / "out/mine", year)
    assert len(records) == 2
    assert records[0]["dice"] < 1
    assert records[0]["sdlogj"] > 0
    for path in (tmp_path / "out/mine", tmp_path / "out/mine.zip"):
        assert score_submission(path, data) == without_cost(records)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine", "mine.zip"]


def test_a_model_on_a_crop_is_scored_on_the_original_grid(tmp_path):
    data = task04(tmp_path, shape=(24, 24, 24))
    records = write_submission(data, tmp_path / "mine", 2020)
    again = score_submission(tmp_path / "mine", data)
    assert [r["dice"] for r in again] == [r["dice"] for r in records]
    assert [r["hd95_vox"] for r in again] == [r["hd95_vox"] for r in records]
    assert [r["sdlogj"] for r in again] != [r["sdlogj"] for r in records]  # over another region
    with np.load(tmp_path / "mine/task_04/disp_0007_0011.npz") as file:
        assert file["arr_0"].shape == (3, 64, 64, 64)
        assert file["arr_0"].dtype == np.float16
        (wave,) = Wave()(torch.zeros(1, 1, 24, 24, 24), None)
        np.testing.assert_array_equal(file["arr_0"][:, 20:44, 20:44, 20:44], wave[0])


def official_dice(fixed, moving, u):
    """Compute Dice as the official evaluator does."""
    warped = ndimage.map_coordinates(moving, np.indices(fixed.shape) + u, order=0)
    scores = [
        2 * ((fixed == k) & (warped == k)).sum() / ((fixed == k).sum() + (warped == k).sum())
        for k in (1, 2)
    ]
    return np.mean(scores)


def test_task03_is_halved_and_scored_as_by_the_evaluator_of_2020(small, tmp_path):
    folder = write_task03(tmp_path)
    data = learn2reg_2020.list_task03_pairs("val", folder, CropOrPad([16, 16, 16]))
    write_submission(data, tmp_path / "mine", 2020)
    for record, (fixed, moving) in zip(
        score_submission(tmp_path / "mine.zip", data), ((7, 11), (11, 20)), strict=True
    ):
        with np.load(tmp_path / f"mine/task_03/disp_{fixed:04d}_{moving:04d}.npz") as file:
            half_resolution = file["arr_0"].astype("float32")
        assert half_resolution.shape == (3, 6, 7, 5)
        u = np.array([ndimage.zoom(half_resolution[i], 2, order=2) for i in range(3)])
        labels = [
            np.asarray(nibabel.load(folder / f"Training/label/label{n:04d}.nii.gz").dataobj)
            for n in (fixed, moving)
        ]
        assert record["dice"] == pytest.approx(official_dice(*labels, u), abs=1e-12)


def official(fixed, moving, u):
    """Score two label maps and a displacement as the official evaluator, in numpy and scipy."""
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
            [surface_distance.compute_robust_hausdorff(distances, 95.0) for distances in surfaces]
        ),
        "sdlogj": np.log((np.linalg.det(inner) + 3).clip(1e-9, 1e9)).std(),
    }


def of_2020(root):
    """Task 4, how it is written, and how an evaluator reads a displacement of a pair."""

    def displacement(folder, fixed, moving):
        with np.load(folder / f"task_04/disp_{fixed:04d}_{moving:04d}.npz") as file:
            return file["arr_0"].astype("float32")

    data = learn2reg_2020.list_task04_pairs(
        "val", write_task04(root, shape=(64, 64, 64)), CropOrPad([64] * 3)
    )
    label = str(root / "task_04/Training/label/hippocampus_{:03d}.nii.gz")
    return data, 2020, displacement, label, [(7, 11), (11, 20)]


def of_2022(root):
    """The same of a release since 2022."""

    def displacement(folder, fixed, moving):
        file = nibabel.load(folder / f"disp_{fixed:04d}_{moving:04d}.nii.gz")
        return np.moveaxis(file.get_fdata().astype("float32"), -1, 0)

    data = release("val", write_release(root), CropOrPad(SHAPE))
    return data, 2022, displacement, str(root / "labelsTr/OASIS_{:04d}_0000.nii.gz"), [(3, 9)]


@pytest.mark.parametrize("published", [of_2020, of_2022])
def test_files_have_the_scores_of_the_official_evaluator(published, tmp_path):
    data, year, displacement, label, pairs = published(tmp_path)
    write_submission(data, tmp_path / "mine", year)
    records = score_submission(tmp_path / "mine.zip", data)
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
def test_since_2022_arrays_have_full_resolution_and_channels_last(
    name, modalities, names, files, tmp_path
):
    data = release("val", write_release(tmp_path, name, modalities), CropOrPad(SHAPE))
    records = write_submission(data, tmp_path / "mine", 2022, file_names=names)
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert archive.namelist() == files
    image = nibabel.load(tmp_path / "mine" / files[0])
    assert image.shape == (*SHAPE, 3)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.affine, np.eye(4))
    (wave,) = Wave()(torch.zeros(1, 1, *SHAPE), None)
    np.testing.assert_array_equal(image.get_fdata(), np.moveaxis(wave[0].numpy(), 0, -1))
    assert score_submission(tmp_path / "mine", data) == without_cost(records)


def test_since_2022_npz_files_of_any_number_type_are_read(tmp_path):
    data = release("val", write_release(tmp_path), CropOrPad(SHAPE))
    records = write_submission(data, tmp_path / "mine", 2022)
    u = np.asarray(nibabel.load(tmp_path / "mine/disp_0003_0009.nii.gz").dataobj)
    (tmp_path / "theirs").mkdir()
    long = tmp_path / "theirs/disp_0003_0000_0009_0000.npz"
    np.savez(long, field=u.astype(np.float64))
    assert score_submission(tmp_path / "theirs", data) == without_cost(records)


def test_2021_has_a_folder_for_each_of_its_tasks(tmp_path):
    data = release("val", write_release(tmp_path), CropOrPad(SHAPE))
    write_submission(data, tmp_path / "mine", 2021)
    with np.load(tmp_path / "mine/task_03/disp_0003_0009.npz") as file:
        assert file["arr_0"].shape == (3, 6, 7, 5)
    assert score_submission(tmp_path / "mine", data)[0]["case"] == "OASIS_0003_0000_OASIS_0009_0000"


def test_tasks_of_several_runs_and_of_a_mixture_are_written_into_one_zip(small, tmp_path):
    data = {
        "task03": learn2reg_2020.list_task03_pairs(
            "val", write_task03(tmp_path), CropOrPad([8, 8, 8])
        ),
        "task02": learn2reg_2020.list_task02_pairs(
            "val", write_task02(tmp_path), CropOrPad([8, 8, 8])
        ),
    }
    mixture = Mixture("val", {name: partial(lambda split, d: d, d=d) for name, d in data.items()})
    write_submission(mixture, tmp_path / "mine", 2020)
    write_submission(task04(tmp_path, shape=(8, 8, 8)), tmp_path / "mine", 2020)
    with zipfile.ZipFile(tmp_path / "mine.zip") as archive:
        assert archive.namelist() == [
            "task_02/disp_0004_0004.npz",
            "task_03/disp_0007_0011.npz",
            "task_03/disp_0011_0020.npz",
            "task_04/disp_0007_0011.npz",
            "task_04/disp_0011_0020.npz",
        ]
    cases = [r["case"] for r in score_submission(tmp_path / "mine.zip", mixture)]
    assert cases[-1] == "task02_case_004_exp_case_004_insp"
    with pytest.raises(UserError, match="2022 takes one data set"):
        write_submission(mixture, tmp_path / "other", 2022)


def test_an_earlier_submission_is_kept_when_a_later_one_fails(tmp_path):
    data = task04(tmp_path, shape=(8, 8, 8))
    write_submission(data, tmp_path / "mine", 2020)
    before = (tmp_path / "mine.zip").read_bytes()

    class Diverged(Wave):
        def forward(self, fixed, moving):
            (u,) = super().forward(fixed, moving)
            self.calls = getattr(self, "calls", 0) + 1
            return [u if self.calls == 1 else u * np.nan]

    module = RegistrationModule(Diverged(), {}, None, metrics=lambda pair, u: {}, name="diverged")
    with pytest.raises(UserError, match=r"hippocampus_011_hippocampus_020: .*NaN"):
        score_pairs(module, data, SubmissionWriter(2020, str(tmp_path / "mine")))
    assert (tmp_path / "mine.zip").read_bytes() == before
    assert len(list((tmp_path / "mine/task_04").iterdir())) == 2
    write_submission(CasePairs(data.case_pairs[1:], data.prepare), tmp_path / "mine", 2020)
    assert os.listdir(tmp_path / "mine/task_04") == ["disp_0011_0020.npz"]
    assert not list(tmp_path.glob(".mine*"))


def test_an_incomplete_submission_is_warned_about(tmp_path, caplog):
    module = RegistrationModule(Wave(), {}, None, metrics=lambda pair, u: {}, name="wave")
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, limit_test_batches=1,
        enable_model_summary=False, callbacks=[SubmissionWriter(2020, str(tmp_path / "mine"))],
    )  # fmt: skip
    data = task04(tmp_path, shape=(8, 8, 8))
    trainer.test(module, DataLoader(data), verbose=False)
    assert "1 pairs are missing" in caplog.text
    with pytest.raises(UserError, match=r"disp_0011_0020\.npz is missing"):
        Submission(tmp_path / "mine.zip", list_challenge_pairs(data))


# --- what cannot be submitted


def test_data_of_no_challenge_are_refused_before_anything_is_written(tmp_path, small):
    hippocampus = task04(tmp_path / "a", shape=(8, 8, 8))
    with pytest.raises(UserError, match="hippocampus was no task of that year"):
        write_submission(hippocampus, tmp_path / "mine", 2021)
    large = learn2reg_2020.list_task04_pairs(
        "val", write_task04(tmp_path / "b", shape=(70, 8, 8)), CropOrPad([8, 8, 8])
    )
    with pytest.raises(UserError, match=r"\(70, 8, 8\), but \(64, 64, 64\) is the shape of"):
        write_submission(large, tmp_path / "mine", 2020)
    write_task(tmp_path / "c", "task_03", "img{:04d}.nii.gz", shape=(12, 14, 9))
    pairs_2020 = learn2reg_2020.list_task03_pairs("val", tmp_path / "c", CropOrPad([8, 8, 8]))
    with pytest.raises(UserError, match=r"img0007.*\(12, 14, 9\), but \(12, 14, 10\).*img0011"):
        write_submission(pairs_2020, tmp_path / "mine", 2020)
    odd = release("val", write_release(tmp_path / "d", shape=(12, 13, 10)), CropOrPad(SHAPE))
    with pytest.raises(UserError, match="12 x 13 x 10 voxels have no half"):
        write_submission(odd, tmp_path / "mine", 2021)
    with pytest.raises(UserError, match="file_names=medium is unknown"):
        write_submission(hippocampus, tmp_path / "mine", 2020, file_names="medium")
    assert not (tmp_path / "mine").exists()


# --- damaged submissions


@pytest.fixture
def submitted(tmp_path):
    """Write a valid submission of 2020 for task 4; return it and its pairs."""
    data = task04(tmp_path, shape=(8, 8, 8))
    write_submission(data, tmp_path / "mine", 2020)
    return tmp_path / "mine", OriginalGridPairs(data).challenge_pairs


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
    data = release("val", write_release(tmp_path), CropOrPad(SHAPE))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/disp_0003_0009.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match=rf"disp_0003_0009\.nii\.gz: .*{sentence}"):
        Submission(tmp_path / "mine", list_challenge_pairs(data))


def test_all_errors_are_reported_at_once(submitted):
    folder, listed = submitted
    (folder / "task_04/disp_0007_0011.npz").unlink()
    (folder / "task_04/disp_0011_0020.npz").write_bytes(npz(NAN))
    with pytest.raises(UserError, match=r"disp_0007_0011.* is missing; .*disp_0011_0020.*: 1 num"):
        Submission(folder, listed)


def test_the_expected_files_are_named_for_a_submission_of_other_pairs(submitted, tmp_path):
    folder, _ = submitted
    data = release("val", write_release(tmp_path / "other"), CropOrPad(SHAPE))
    names = r"such as task_03/disp_0003_0009\.npz or disp_0003_0009\.nii\.gz"
    with pytest.raises(UserError, match=f"holds no displacement of these pairs, {names}"):
        Submission(folder, list_challenge_pairs(data))


@pytest.mark.parametrize(
    "name", ["../evil.npz", "/evil.npz", "a/../../evil.npz", "..\\evil.npz", "C:\\evil.npz"]
)
def test_a_zip_with_paths_out_of_its_folder_is_refused(name, submitted):
    folder, listed = submitted
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"evil")
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=r"mine\.zip: is refused.*evil\.npz"):
        Submission(archive, listed)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_path_that_is_neither_folder_nor_zip_is_named(submitted):
    folder, listed = submitted
    with pytest.raises(UserError, match="submission=nowhere: there is no such folder or zip"):
        Submission("nowhere", listed)
    archive = folder.with_suffix(".zip")
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"mine\.zip: is no zip"):
        Submission(archive, listed)


def test_a_zip_is_read_without_being_unpacked(submitted, tmp_path, monkeypatch):
    folder, listed = submitted
    monkeypatch.setattr(zipfile.ZipFile, "extract", None)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", None)
    submission = Submission(folder.with_suffix(".zip"), listed)
    name, entry = next(iter(listed.items()))
    assert submission.read(entry).shape == (3, 64, 64, 64)
    assert name == "hippocampus_007_hippocampus_011"


# --- the command


def test_the_command_writes_and_scores_a_submission(command, tmp_path):
    write_task04(tmp_path / "learn2reg2020")
    common = ["data=task04", f"data_root={tmp_path}", "trainer.enable_progress_bar=false",
              "trainer.accelerator=cpu", "num_pictures=0", "metrics=learn2reg"]  # fmt: skip
    done = command("evaluate.py", "model=identity", "submission=2020", "output_dir=first", *common)
    assert done.returncode == 0, done.stderr
    done = command(
        "evaluate.py",
        "submission=first/submission.zip",
        "output_dir=second",
        "method_name=theirs",
        *common,
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
def test_missing_arguments_of_a_submission_are_named(arguments, sentence, composed):
    with pytest.raises(UserError, match=re.escape(sentence)):
        setup.set_up_evaluation(composed("evaluate", *arguments))


@pytest.mark.parametrize(
    ("choice", "writes"), [("null", False), ("2020", True), ("theirs.zip", False)]
)
def test_a_submission_is_written_only_where_it_is_a_year(choice, writes, composed, tmp_path):
    cfg = composed("evaluate", "model=identity", "data=synthetic", f"submission={choice}")
    names = [type(callback).__name__ for callback in setup.instantiate_callbacks(cfg)]
    assert ("SubmissionWriter" in names) == writes


# --- real images


def test_real_hippocampi_have_the_same_scores_in_memory_and_from_a_file(tmp_path):
    root = Path(os.environ.get("REGNET_LAB_DATA", "data")) / "learn2reg2020/task_04"
    if not root.is_dir():
        pytest.skip("set REGNET_LAB_DATA to the folder with learn2reg2020/task_04")
    data = learn2reg_2020.list_task04_pairs("val", root, CropOrPad([64, 64, 64]))
    two = CasePairs(data.case_pairs[:2], data.prepare)
    records = write_submission(two, tmp_path / "mine", 2020)
    assert score_submission(tmp_path / "mine.zip", two) == without_cost(records)
