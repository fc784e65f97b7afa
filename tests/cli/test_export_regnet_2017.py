"""What is written for other tools, read back by SimpleITK; DIR-Lab's raw files."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from regnet_lab.cli import convert_dirlab, export_regnet_2017
from regnet_lab.config.instantiate import build
from regnet_lab.data.io.images import read_volume
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_image

SMALL = ["--border", "4", "--distance", "6", "--area", "3", "--sigma", "5", "4", "3",
         "--max-deform", "4", "3", "3", "--peaks", "20", "20", "20"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in (1, 2):
        image = sitk.GetImageFromArray(rng.integers(-900, 100, (20, 24, 22)).astype(np.int16))
        image.SetSpacing((1.5, 1.0, 2.0))
        image.SetOrigin((-10.0, 20.0, 5.0))
        image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
        path = tmp_path / f"images/ExpLung{number}/Fixed.mha"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(image, str(path))
    return tmp_path


def run(folder, *more):
    where = [str(folder / "images"), "--pattern", "ExpLung{}/Fixed.mha", "--out", str(folder / "o")]
    export_regnet_2017.main([*where, *SMALL, *more])
    return folder / "o/Elastix/LungExp3DF"


@pytest.mark.parametrize("ending", [".mha", ".nii.gz"])
def test_another_tool_makes_the_deformed_image_of_the_files(folder, ending):
    out = run(folder, "--noise", "0", "--ending", ending)
    for d in (0, 1, 2):
        for number in (1, 2):
            case = out / f"ExpLung{number}/Dsmooth0/D{d}"
            original = sitk.ReadImage(str(folder / f"images/ExpLung{number}/Fixed.mha"))
            deformed = sitk.ReadImage(str(case / f"DeformedImage{ending}"))
            field = sitk.ReadImage(str(case / f"DeformedDVF{ending}"), sitk.sitkVectorFloat64)
            assert (case / f"DeformedArea{ending}").exists() == (d == 2)
            warped = sitk.Resample(
                sitk.Cast(original, sitk.sitkFloat32),
                deformed,
                sitk.DisplacementFieldTransform(field),
            )
            ours, theirs = (sitk.GetArrayFromImage(i).astype(float) for i in (deformed, warped))
            inner = (slice(5, -5),) * 3
            assert np.abs(ours - theirs)[inner].max() <= 1
            assert np.abs(ours - sitk.GetArrayFromImage(original))[inner].mean() > 50


def test_what_is_there_is_left_alone_and_the_seed_tells(folder):
    out = run(folder, "--kinds", "low")
    path = out / "ExpLung1/Dsmooth0/D0/DeformedDVF.mha"
    first = path.read_bytes(), path.stat().st_mtime_ns
    run(folder, "--kinds", "low", "--seed", "1")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == first
    path.unlink()
    run(folder, "--kinds", "low")
    assert path.read_bytes() == first[0]
    assert not (out / "ExpLung1/Dsmooth0/D1").exists()


def test_vectors_are_lps_millimetres():
    affine = np.array([[0, -2.0, 0, 3], [1.5, 0, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    u = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    field = displacement_image(u, affine)
    index = (2, 3, 1)
    start = np.array(field.TransformIndexToPhysicalPoint(index))
    moved = np.array(index) + u[0][(slice(None), *index)].numpy()
    end = coordinates.flip_points(coordinates.voxel_to_world(affine, moved[None]))[0]
    np.testing.assert_allclose(field.GetPixel(index), end - start, atol=1e-5)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Two small cases in the names of two real ones."""
    rng = np.random.default_rng(0)
    patients = {
        "case6": convert_dirlab.Patient(
            "case6", (8, 9, 7), (1.0, 1.5, 2.5), ("T00", "T50"), "test"
        ),
        "copd1": convert_dirlab.Patient(
            "copd1", (8, 9, 7), (1.0, 1.5, 2.5), ("iBHCT", "eBHCT"), "train"
        ),
    }
    monkeypatch.setattr(convert_dirlab, "PATIENTS", patients)
    names = {
        "case6": ("Case6Pack/Images/case6_{}.img", "Case6Pack/Extreme/case6_dirLab300_{}_xyz.txt"),
        "copd1": ("copd1/copd1_{}CT.img", "copd1/copd1_300_{}_xyz_r1.txt"),
    }
    phases = {"case6": ("T00", "T50"), "copd1": ("iBH", "eBH")}
    for case, patterns in names.items():
        raw = rng.integers(0, 1500, (7, 9, 8)).astype("<i2")  # z, y, x
        raw[0] = -2000 if case == "copd1" else raw[0]
        for shift, phase in enumerate(phases[case]):
            image, text = (pattern.format(phase) for pattern in patterns)
            path = tmp_path / "raw" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            raw.tofile(path)
            text_path = tmp_path / "raw" / text
            text_path.parent.mkdir(parents=True, exist_ok=True)
            text_path.write_text(f"3\t4\t{5 + shift}\n1\t1\t2\n", encoding="utf-8")
    return tmp_path


def test_dirlab_s_landmarks_lie_where_they_did_in_the_raw_image(downloads, composed):
    convert_dirlab.main([str(downloads / "raw"), str(downloads / "dirlab")])
    table = pd.read_csv(downloads / "dirlab/pairs.csv")
    assert table["split"].tolist() == ["test", "train"]
    for row in table.to_dict("records"):
        first = "T00.img" if row["name"] == "case6" else "iBHCT.img"
        raw = next((downloads / "raw").rglob(f"{row['name']}_{first}"))
        voxels = np.fromfile(raw, "<i2").reshape(7, 9, 8)
        volume = read_volume(downloads / "dirlab" / row["fixed"])
        points = pd.read_csv(downloads / "dirlab" / row["fixed_points"]).to_numpy().astype(int)
        for (x, y, z), (i, j, k) in zip(points, [(3, 4, 5), (1, 1, 2)], strict=True):
            assert volume.array[x, y, z] == voxels[k - 1, j - 1, i - 1] - 1024
        assert volume.array.shape == (8, 9, 7 if row["name"] == "case6" else 6)
        assert volume.array.min() >= -1024
        np.testing.assert_allclose(volume.spacing, (1.0, 1.5, 2.5))
    data = build(
        composed("evaluate", "data=dirlab", "model=identity", f"data_root={downloads}").data
    )
    pair = data.pairs("test")[0]
    moved = (pair["moving_points"] - pair["fixed_points"]) * pair["spacing"]
    np.testing.assert_allclose(moved.numpy(), [[0, 0, -2.5], [0, 0, 0]], atol=1e-4)


def test_dirlab_s_missing_and_damaged_files_are_named(downloads):
    where = [str(downloads / "raw"), str(downloads / "dirlab")]
    path = downloads / "raw/copd1/copd1_eBHCT.img"
    kept = path.read_bytes()
    path.write_bytes(kept[:-2])
    with pytest.raises(UserError, match=r"copd1_eBHCT\.img: holds 503 voxels"):
        convert_dirlab.main(where)
    path.unlink()
    with pytest.raises(UserError, match="copd1: the image of eBHCT"):
        convert_dirlab.main(where)
    (downloads / "none").mkdir()
    with pytest.raises(UserError, match="no raw image"):
        convert_dirlab.main([str(downloads / "none"), where[1]])
    assert len(convert_dirlab._patients()) == 20
