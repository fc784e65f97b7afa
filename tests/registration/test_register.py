"""The command register.py: files in, files out."""

import json
import os

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from regnet_lab.cli import register
from regnet_lab.data.io.cases import LoadedCase
from regnet_lab.errors import UserError
from regnet_lab.registration.api import build_pipeline
from regnet_lab.spatial import coordinates
from tests.helpers.dicom import write_dicom
from tests.helpers.registration import (
    QUICK_OPTIONS,
    limit_file_size,
    make_cases,
    make_grids,
    render_texture,
    save_nifti,
)

QUICK = ["optimizer.steps=[8,8]", "optimizer.max_voxels=4000", "align.iterations=20", "threads=1"]


@pytest.fixture
def files(tmp_path):
    """Write two int16 images aligned in the world, with labels and landmarks."""
    fixed, moving = make_grids(3)
    files_by_key = {}
    for side, grid in (("fixed", fixed), ("moving", moving)):
        image = render_texture(grid)
        files_by_key[side] = save_nifti(
            tmp_path / f"{side}.nii.gz", image.astype(np.int16), grid.affine
        )
        labels = (image > 100).astype(np.uint8)
        files_by_key[f"{side}_labels"] = save_nifti(
            tmp_path / f"{side}_l.nii.gz", labels, grid.affine
        )
        ras = np.random.default_rng(0).uniform(-8, 8, (6, 3))
        pd.DataFrame(ras).to_csv(tmp_path / f"{side}.csv", index=False, header=False)
        files_by_key[f"{side}_points"] = str(tmp_path / f"{side}.csv")
    return files_by_key


def to_arguments(files):
    """Format files as command-line arguments."""
    return [f"{key}={value}" for key, value in files.items()]


def assert_one_sentence(process, *words):
    """Check that a command failed with one sentence that contains some words."""
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr + process.stdout
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, process.stderr
    for text in words:
        assert text in lines[0], lines[0]


def test_a_pair_of_files_is_registered(files, command, tmp_path):
    process = command(
        "register.py",
        *to_arguments(files),
        "points_space=ras",
        "transform_formats=[itk,field,ants,fsl,learn2reg]",
        "output_dir=out",
        *QUICK,
    )
    assert process.returncode == 0, process.stderr
    assert "registered" not in os.listdir(tmp_path)
    out = tmp_path / "out"
    assert not list(tmp_path.glob("**/*.part"))
    assert {path.name for path in out.iterdir()} == {
        "warped.nii.gz",
        "warped_labels.nii.gz",
        "fixed_points_in_moving.csv",
        "moving_points_in_fixed.csv",
        "Composite.h5",
        "InverseComposite.h5",
        "affine.tfm",
        "displacement.nii.gz",
        "inverse_displacement.nii.gz",
        "1Warp.nii.gz",
        "1InverseWarp.nii.gz",
        "0GenericAffine.mat",
        "fsl_warp.nii.gz",
        "fsl_inverse_warp.nii.gz",
        "fsl_affine.mat",
        "l2r_displacement.npz",
        "l2r_displacement.nii.gz",
        "l2r_inverse_displacement.npz",
        "l2r_inverse_displacement.nii.gz",
        "quality.json",
        "settings.json",
        "quality.png",
    }
    fixed = nibabel.load(files["fixed"])
    image = nibabel.load(out / "warped.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    inner = (slice(4, -4),) * 3
    assert np.corrcoef(image.get_fdata()[inner].ravel(), fixed.get_fdata()[inner].ravel())[0, 1] > (
        0.97
    )
    report = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert report["dice"]["registered"]["mean"] > 0.8
    assert report["tre_mm"]["registered"]["mean"] < 1.5
    assert report["folds_percent"] == 0
    mapped = pd.read_csv(out / "fixed_points_in_moving.csv").to_numpy()
    expected = pd.read_csv(files["moving_points"], header=None).to_numpy()
    error = np.linalg.norm(mapped - expected, axis=1)
    np.testing.assert_allclose(error, report["tre_mm"]["registered"]["each"], atol=1e-3)

    transform = sitk.ReadTransform(str(out / "Composite.h5"))
    moving = sitk.ReadImage(files["moving"], sitk.sitkFloat32)
    resampled = sitk.Resample(
        moving, sitk.ReadImage(files["fixed"]), transform, sitk.sitkLinear, image.get_fdata().min()
    )
    difference = np.abs(sitk.GetArrayFromImage(resampled).T - image.get_fdata())[inner]
    assert difference.max() <= 0.5 + 1e-3 * np.ptp(image.get_fdata())  # rounded to int16

    applied = command(
        "register.py",
        "apply_transform=out/Composite.h5",
        f"image={files['moving']}",
        f"fixed={files['fixed']}",
        "output_dir=applied",
    )
    assert applied.returncode == 0, applied.stderr
    resampled = nibabel.load(tmp_path / "applied" / "warped.nii.gz")
    assert resampled.get_data_dtype() == np.int16
    assert np.abs(resampled.get_fdata() - image.get_fdata())[inner].max() <= 1
    composed = command(
        "register.py",
        "apply_transform=[out/InverseComposite.h5,out/Composite.h5]",
        f"image={files['moving_labels']}",
        "interpolation=nearest",
        "output_dir=composed",
    )
    assert composed.returncode == 0, composed.stderr
    assert (tmp_path / "composed" / "Composite.h5").exists()


def test_a_table_continues_after_a_pair_that_fails(files, command, tmp_path):
    rows = [
        {"fixed": "fixed.nii.gz", "moving": "nowhere.nii.gz", "name": "bad"},
        {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "name": "good"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    process = command("register.py", "pairs=list.csv", "output_dir=out", *QUICK)
    assert_one_sentence(process, "1 of 2", "bad")
    assert "nowhere.nii.gz" in process.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good", "pairs.csv"}
    table = pd.read_csv(tmp_path / "out" / "pairs.csv").set_index("name")
    assert "nowhere.nii.gz" in table.error["bad"]
    assert table.ncc_registered["good"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["fixed="]),
        (["fixed=a.nii.gz"], ["moving="]),
        (["fixed=nowhere.nii", "moving=good.nii"], ["nowhere.nii", "missing"]),
        (["fixed=good.nii", "moving=words.nii"], ["words.nii"]),
        (["fixed=good.nii", "moving=good.nii", "moving_labels=nan.nii"], ["nan.nii", "NaN"]),
        (["fixed=good.nii", "moving=constant.nii"], ["moving image", "everywhere"]),
        (["fixed=good.nii", "moving=four.nii"], ["four.nii", "phase"]),
        (["fixed=good.nii", "moving=plane.nii"], ["2D", "3D"]),
        (["fixed=good.nii", "moving=far.nii"], ["do not overlap", "align.init"]),
        (["fixed=good.nii", "moving=gap"], ["gap", "missing"]),
        (["fixed=good.nii", "moving=good.nii", "output_dir=words.nii/out"], ["words.nii/out"]),
        (["fixed=good.nii", "moving=good.nii", "transform_formats=[afni]"], ["afni"]),
        (["fixed=good.nii", "moving=sheared.nii", "transform_formats=[field]"], ["moving image"]),
        (["fixed=good.nii", "moving=good.nii", "run=nowhere"], ["nowhere"]),
        (["fixed=good.nii", "moving=nan.nii", "model=identity", "optimizer=network"], ["run="]),
        (["apply_transform=words.nii", "image=good.nii"], ["words.nii"]),
        (["apply_transform=words.nii"], ["image="]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments, words, composed, tmp_path, monkeypatch
):
    grid = make_grids(3)[0]
    image = render_texture(grid)
    monkeypatch.chdir(tmp_path)
    far = grid.affine.copy()
    far[:3, 3] += 1000
    sheared = grid.affine @ (np.eye(4) + 0.3 * np.eye(4, k=1) * [1, 1, 0, 0])
    broken = image.copy()
    broken[3, 4, 5] = np.nan
    (tmp_path / "words.nii").write_text("no image", encoding="utf-8")
    images = {
        "good": (image, grid.affine),
        "nan": (broken, grid.affine),
        "constant": (np.ones_like(image), grid.affine),
        "four": (np.stack([image] * 2, -1), grid.affine),
        "plane": (image[:, :, 3], grid.affine),
        "far": (image, far),
        "sheared": (image, sheared),
    }
    for name, (array, affine) in images.items():
        save_nifti(tmp_path / f"{name}.nii", array, affine)
    write_dicom(tmp_path / "gap", skip=(2,))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        register.run_register(composed("register", *arguments))
    for text in words:
        assert text in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(files, composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    images = [argument for argument in to_arguments(files) if "_" not in argument.split("=")[0]]
    cfg = composed("register", *images, *QUICK_OPTIONS)
    with (
        limit_file_size(3000),
        pytest.raises(UserError, match="registered cannot be written") as caught,
    ):
        register.run_register(cfg)
    assert "make room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_network_of_a_run_works_on_its_training_grid(command, composed, tmp_path, monkeypatch):
    trained = command(
        "train.py",
        "ndim=2",
        "data.dataset.shape=24",
        "data.dataset.num_pairs=2",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "run_dir=run",
        "validate_data=null",
    )
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "outputs" / "run"
    training_grid = json.loads((run / "grid.json").read_text(encoding="utf-8"))
    assert training_grid["shape"] == [24, 24]
    fixed, moving = make_cases(2)
    fine = np.diag([0.5, 0.5, 1, 1])
    for name, case in (("a", fixed), ("b", moving)):
        save_nifti(tmp_path / f"{name}.nii", case.image[..., None], case.affine @ fine)
    monkeypatch.chdir(tmp_path)
    cfg = composed("register", f"run={run}", "fixed=a.nii", "moving=b.nii", "device=cpu")
    pipeline = build_pipeline(cfg, ["run=x"])
    assert pipeline.optimizer is None
    assert build_pipeline(cfg, ["optimizer=field"]).optimizer is not None
    inference_grid = pipeline.grid.compute_grid(LoadedCase(fixed.image, fixed.affine @ fine))
    np.testing.assert_allclose(
        coordinates.affine_to_spacing(inference_grid.affine, 2), training_grid["spacing"]
    )
    register.run_register(cfg)
    report = json.loads((tmp_path / "registered" / "quality.json").read_text(encoding="utf-8"))
    assert report["similarity"]["registered"]["ncc"] > 0.5
