"""Deformations in the layout of RegNet's first version, read by SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regnet_lab.cli import export_regnet_2017
from regnet_lab.spatial import coordinates
from regnet_lab.spatial.writers import displacement_to_sitk

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
    where = [
        str(folder / "images"),
        "--pattern",
        "ExpLung{}/Fixed.mha",
        "--output",
        str(folder / "o"),
    ]
    export_regnet_2017.main([*where, *SMALL, *more])
    return folder / "o/Elastix/LungExp3DF"


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz"])
def test_simpleitk_reproduces_the_deformed_image_from_the_files(folder, suffix):
    out = run(folder, "--noise", "0", "--image-suffix", suffix)
    for d in (0, 1, 2):
        for number in (1, 2):
            case = out / f"ExpLung{number}/Dsmooth0/D{d}"
            original = sitk.ReadImage(str(folder / f"images/ExpLung{number}/Fixed.mha"))
            deformed = sitk.ReadImage(str(case / f"DeformedImage{suffix}"))
            field = sitk.ReadImage(str(case / f"DeformedDVF{suffix}"), sitk.sitkVectorFloat64)
            assert (case / f"DeformedArea{suffix}").exists() == (d == 2)
            warped = sitk.Resample(
                sitk.Cast(original, sitk.sitkFloat32),
                deformed,
                sitk.DisplacementFieldTransform(field),
            )
            ours, theirs = (sitk.GetArrayFromImage(i).astype(float) for i in (deformed, warped))
            inner = (slice(5, -5),) * 3
            assert np.abs(ours - theirs)[inner].max() <= 1
            assert np.abs(ours - sitk.GetArrayFromImage(original))[inner].mean() > 50


def test_existing_files_are_kept_and_a_seed_reproduces_deleted_ones(folder):
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
    field = displacement_to_sitk(u, affine)
    index = (2, 3, 1)
    start = np.array(field.TransformIndexToPhysicalPoint(index))
    moved = np.array(index) + u[0][(slice(None), *index)].numpy()
    end = coordinates.flip_points(coordinates.voxel_to_world(affine, moved[None]))[0]
    np.testing.assert_allclose(field.GetPixel(index), end - start, atol=1e-5)
