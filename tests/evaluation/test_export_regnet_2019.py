"""Deformations in the layout of RegNet's second version, read by SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import DataLoader

from regnet_lab.data.synthesis.deformed_images import make_self_pair
from regnet_lab.data.synthesis.displacements.base import Zero
from regnet_lab.data.synthesis.displacements.bspline import SingleFrequency
from regnet_lab.data.synthesis.displacements.masked_image import MaskAgnosticDisplacement
from regnet_lab.data.synthesis.regnet_2019 import RegNet2019Pairs
from regnet_lab.errors import UserError
from regnet_lab.evaluation.export_regnet_2019 import RegNet2019ExportTask, make_method_folder

SPACING = (2.0, 1.5, 2.5)
SHAPE = (18, 20, 16)


def artificial(size, looks=("clean",)):
    def images(split):
        rng, pairs = np.random.default_rng(0), []
        for name in ("1", "2"):
            image = torch.from_numpy(gaussian_filter(rng.uniform(0, 1, SHAPE), 1.5)).float()
            lung = torch.zeros(1, *SHAPE)
            lung[:, 4:12, 5:15, 3:13] = 1
            pair = make_self_pair((image[None] - 0.4) * 5, name, SPACING)
            pairs.append({**pair, "moving_mask": lung})
        return pairs

    field = SingleFrequency(max_deform=6.0, knot_spacing=12.0, zero_border=0)
    methods = {"single0": field, "single1": field, "zero": MaskAgnosticDisplacement(Zero())}
    return RegNet2019Pairs(
        "train", images, methods, field, looks, size, window_width=1400.0, body_threshold=0.3
    )


def run(folder, data, **options):
    task = RegNet2019ExportTask(str(folder), "3D_max20_D14_K", case_name="ExpLung{}", **options)
    task.run(None, None, DataLoader(data))
    return folder / "Elastix"


def read(path):
    return sitk.ReadImage(str(path))


@pytest.mark.parametrize(("stage", "end"), [(1, ""), (4, "_s4")])
def test_files_are_in_the_layout_of_the_second_version(tmp_path, stage, end):
    root = run(tmp_path, artificial(8), stage=stage)
    written = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    generated = "Artificial_Generation/3D_max20_D14_K/SPREAD/Fixed"
    methods = ["single_frequency_D0", "single_frequency_D1", "zero_D0", "single_frequency_D0"]
    deformed = ("DeformedImage_Clean", "DeformedLung", "DeformedTorso")
    expected = {
        f"{generated}/ExpLung{case}/Dsmooth{k}/{method}/{name}{end}.mha"
        for case in (1, 2)
        for k, method in enumerate(methods)
        for name in (*deformed, "Jac_pad0", "DeformedDVF_pad0")
    }
    for case in (1, 2):
        for name in ("NextIm", "NextLung", "NextTorso"):
            expected.add(f"{generated}/ExpLung{case}/Dsmooth0/DNext3/{name}{end}.mha")
        for name in ("Image", "Mask", "Torso"):
            expected.add(f"LungExp/ExpLung{case}/Result/Fixed{name}FullRS1{end}.mha")
    assert written == expected


def test_simpleitk_reproduces_the_deformed_image_from_the_source(tmp_path):
    data = artificial(8)
    root = run(tmp_path, data)
    generated = root / "Artificial_Generation/3D_max20_D14_K/SPREAD/Fixed/ExpLung2"
    sources = {
        0: root / "LungExp/ExpLung2/Result/FixedImageFullRS1.mha",
        3: generated / "Dsmooth0/DNext3/NextIm.mha",
    }
    for k, source in sources.items():
        folder = generated / f"Dsmooth{k}/single_frequency_D0"
        deformed = read(folder / "DeformedImage_Clean.mha")
        field = sitk.ReadImage(str(folder / "DeformedDVF_pad0.mha"), sitk.sitkVectorFloat64)
        determinant = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
        ours = sitk.GetArrayFromImage(read(folder / "Jac_pad0.mha"))
        inner = (slice(3, -3),) * 3
        np.testing.assert_allclose(ours[inner], determinant[inner], atol=1e-4)
        assert ours.std() > 0.01
        warped = sitk.Resample(
            sitk.Cast(read(source), sitk.sitkFloat32),
            deformed,
            sitk.DisplacementFieldTransform(field),
        )
        a, b = (sitk.GetArrayFromImage(image).astype(float) for image in (deformed, warped))
        assert np.abs(a - b)[inner].max() <= 1
        assert np.abs(a - sitk.GetArrayFromImage(read(source)))[inner].mean() > 20
        assert deformed.GetPixelID() == sitk.sitkInt16
        assert deformed.GetSpacing() == pytest.approx(SPACING)
    original = sitk.GetArrayFromImage(read(sources[0])).T
    np.testing.assert_array_equal(
        original, np.rint(data.source_dataset[1]["moving"][0].numpy() * np.float32(1400) - 1000)
    )


def test_existing_files_are_not_overwritten_and_names_include_the_intensity_model(tmp_path):
    root = run(tmp_path, artificial(2))
    path = next(root.rglob("ExpLung1/Dsmooth0/*/DeformedDVF_pad0.mha"))
    first = path.read_bytes(), path.stat().st_mtime_ns
    run(tmp_path, artificial(2, ["noise"]))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == first
    assert not list(root.rglob("DeformedImage_Noise.mha"))
    path.unlink()
    run(tmp_path, artificial(2, ["noise"]))
    assert [p.parts[-4] for p in root.rglob("DeformedImage_Noise.mha")] == ["ExpLung1"]
    assert path.read_bytes() == first[0]


def test_methods_have_the_published_folder_names_and_other_data_are_refused(tmp_path):
    assert make_method_folder("respiratory3") == "respiratory_motion_D3"
    assert make_method_folder("mixed1") == "mixed_frequency_D1"
    assert make_method_folder("translation") == "translation_D0"
    with pytest.raises(UserError, match="choose data=regnet_2019_s1"):
        RegNet2019ExportTask(str(tmp_path), "x").run(None, None, DataLoader([1, 2]))
