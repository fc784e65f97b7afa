"""The user's own pairs: tables, formats, grids, and what is said of faults."""

import os

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets.csv_pairs import COLUMNS, list_csv_pairs, make_case_name
from regnet_lab.data.io.tables import find_similar_word
from regnet_lab.data.preprocessing.functional import normalize_min_max
from regnet_lab.data.preprocessing.grids import ResampleToFixed
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

DATA = os.environ.get("REGNET_LAB_DATA")
GRID = ResampleToFixed(intensity=normalize_min_max)
FIXED = np.array([[-1.5, 0, 0, 10], [0, 0, 2.0, -20], [0, -1.25, 0, 30], [0, 0, 0, 1]])
MOVING = np.diag([1.0, 1.0, 1.5, 1.0])
MOVING[:3, 3] = -10, -22, 12
MARKS = np.array([[-2.0, -10, 22], [1, -8, 25], [3.5, -12, 20]])  # mm, RAS, in both images


def listed(fixed, moving):
    return fixed, moving


def sphere_field(affine, shape):
    """A smooth function of the place in the world, so that resampling it is known."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3)
    x = coordinates.voxel_to_world(affine, voxels)
    return np.sin(x @ [0.11, 0.07, 0.13]).reshape(shape).astype(np.float32)


def write_image(path, array, affine):
    """In the format that the ending names; without one, as a DICOM folder."""
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
    elif path.suffix:
        sitk.WriteImage(coordinates.array_to_sitk(array, affine), str(path))
    else:
        write_dicom(path, array, affine)


def write_dicom(folder, array, affine):
    folder.mkdir()
    whole = coordinates.array_to_sitk(np.round(1000 * (array + 1)).astype(np.int16), affine)
    for k in range(whole.GetDepth()):
        plane = whole[:, :, k : k + 1]
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0020|0013": str(k),
            "0020|0032": "\\".join(map(str, plane.GetOrigin())),
            "0020|0037": "\\".join(map(str, np.array(plane.GetDirection())[[0, 3, 6, 1, 4, 7]])),
        }
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(plane)


def write_table(folder, *rows, header="fixed,moving"):
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def write_empty(folder, *names):
    for name in names:
        (folder / name).touch()


def write_marks(path, points):
    lines = ["id,x,y,z"] + [f"{i},{x},{y},{z}" for i, (x, y, z) in enumerate(points)]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ""])
def test_images_of_different_size_spacing_and_orientation_meet_in_the_world(ending, tmp_path):
    fixed, moving = sphere_field(FIXED, (16, 14, 18)), sphere_field(MOVING, (30, 28, 17))
    write_image(tmp_path / "fixed.nii.gz", fixed, FIXED)
    write_image(tmp_path / f"moving{ending}", moving, MOVING)
    table = write_table(tmp_path, f"fixed.nii.gz,moving{ending}")
    pair = list_csv_pairs("test", GRID, table)[0]
    assert pair["fixed"].shape == pair["moving"].shape == (1, 16, 14, 18)
    np.testing.assert_allclose(pair["spacing"], [1.5, 1.25, 2.0], atol=1e-6)

    def ranged(array, like):
        return (array - like.min()) / np.ptp(like)

    x = coordinates.voxel_to_world(FIXED, np.argwhere(np.ones((16, 14, 18))))
    y = coordinates.world_to_voxel(MOVING, x)
    inside = ((y >= 0) & (y <= np.array([29, 27, 16]))).all(1).reshape(16, 14, 18)
    assert 200 < inside.sum() < inside.size
    expected = ranged(fixed, moving)
    np.testing.assert_allclose(pair["moving"][0][inside], expected[inside], atol=0.02)


@pytest.mark.parametrize("space", ["voxel", "ras", "lps"])
def test_landmarks_of_any_space_come_in_voxels_of_the_fixed_grid(space, tmp_path):
    write_image(tmp_path / "fixed.nii.gz", sphere_field(FIXED, (16, 14, 18)), FIXED)
    write_image(tmp_path / "moving.mha", sphere_field(MOVING, (30, 28, 17)), MOVING)
    for name, affine in (("fixed", FIXED), ("moving", MOVING)):
        marks = {
            "ras": MARKS,
            "lps": MARKS * [-1, -1, 1],
            "voxel": coordinates.world_to_voxel(affine, MARKS),
        }
        write_marks(tmp_path / f"{name}.csv", marks[space])
    header = "fixed,moving,fixed_points,moving_points"
    table = write_table(tmp_path, "fixed.nii.gz,moving.mha,fixed.csv,moving.csv", header=header)
    columns = {"fixed_points_columns": ["x", "y", "z"], "moving_points_columns": [1, 2, 3]}
    pair = list_csv_pairs("val", GRID, table, points_space=space, **columns)[0]
    expected = coordinates.world_to_voxel(FIXED, MARKS)
    np.testing.assert_allclose(pair["fixed_points"], expected, atol=1e-3)
    np.testing.assert_allclose(pair["moving_points"], expected, atol=1e-3)


def test_a_landmark_stays_in_its_label_and_masks_and_names_come_along(tmp_path):
    shape = (30, 28, 17)
    spots = np.array([[8, 9, 5], [15, 20, 8], [20, 12, 11]])
    labels = np.zeros(shape, np.uint8)
    for value, (i, j, k) in enumerate(spots, start=1):
        labels[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = value
    write_image(tmp_path / "image.nii.gz", sphere_field(MOVING, shape), MOVING)
    write_image(tmp_path / "labels.nrrd", labels, MOVING)
    write_image(tmp_path / "mask.mha", (labels > 1).astype(np.uint8), MOVING)
    write_marks(tmp_path / "spots.csv", spots)
    row = {"name": "visit 7", "fixed": "image.nii.gz", "moving": "image.nii.gz"}
    for side in ("fixed", "moving"):
        row |= {f"{side}_labels": "labels.nrrd", f"{side}_points": "spots.csv"}
    row["moving_mask"] = "mask.mha"
    columns = {"fixed_points_columns": ["x", "y", "z"], "moving_points_columns": ["x", "y", "z"]}
    prepare = ResampleToFixed([40, 30, 24], spacing=[1.2, 1.0, 1.1])
    pair = list_csv_pairs("train", prepare, [row], str(tmp_path), **columns)[0]
    assert pair["name"] == "visit 7"
    assert "fixed_mask" not in pair
    for side in ("fixed", "moving"):
        for value, point in enumerate(pair[f"{side}_points"], start=1):
            assert pair[f"{side}_labels"][(0, *point.round().long())] == value
            box = (pair[f"{side}_labels"][0] == value).nonzero().float()
            assert (box.mean(0) - point).abs().max() < 0.51
    assert torch.equal(pair["moving_mask"] > 0, pair["moving_labels"] > 1)


def test_rows_go_to_the_split_they_name_and_test_falls_back_on_val(tmp_path):
    write_empty(tmp_path, *(f"{n}.nii.gz" for n in range(6)))
    rows = ["0.nii.gz,1.nii.gz,train", "2.nii.gz,3.nii.gz,val", "4.nii.gz,5.nii.gz,train"]
    table = write_table(tmp_path, *rows, header="fixed,moving,split")

    def named(split, table):
        return [
            [case.name for case in pair] for pair in list_csv_pairs(split, listed, table).case_pairs
        ]

    assert named("train", table) == [["0", "1"], ["4", "5"]]
    assert named("val", table) == named("test", table) == [["2", "3"]]
    table = write_table(tmp_path, *rows, "1.nii.gz,3.nii.gz,test", header="fixed,moving,split")
    assert named("test", table) == [["1", "3"]]


def test_without_a_split_every_split_has_all_rows_and_a_warning_says_so(tmp_path, caplog):
    write_empty(tmp_path, "a.nii.gz", "b.nii.gz")
    table = write_table(tmp_path, "a.nii.gz,b.nii.gz")
    assert [len(list_csv_pairs(split, listed, table)) for split in ("val", "test")] == [1, 1]
    assert not caplog.records
    assert len(list_csv_pairs("train", listed, table)) == 1
    assert "has no column 'split': training and validation share its pairs" in caplog.text


def test_files_are_relative_to_the_table_or_to_the_root_or_absolute(tmp_path):
    for folder in ("tables", "images"):
        (tmp_path / folder).mkdir()
    write_empty(tmp_path / "tables", "a.nii.gz")
    write_empty(tmp_path / "images", "a.nii.gz")
    table = write_table(tmp_path / "tables", f"a.nii.gz,{tmp_path}/images/a.nii.gz")
    (pair,) = list_csv_pairs("val", listed, table).case_pairs
    assert [c.image for c in pair] == [tmp_path / f / "a.nii.gz" for f in ("tables", "images")]
    (pair,) = list_csv_pairs("val", listed, table, root=str(tmp_path / "images")).case_pairs
    assert {c.image for c in pair} == {tmp_path / "images" / "a.nii.gz"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/b.nii.gz", "a-b"),
        ("../scan.v2.mha", "scan.v2"),
        ("dicom/1.2.840/", "dicom-1.2.840"),
        ("./x.NRRD", "x"),
    ],
)
def test_images_are_named_by_their_path(file, name):
    assert make_case_name(file) == name


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("fixd", "fixed"),
        ("Moving", "moving"),
        ("moving_label", "moving_labels"),
        ("Split ", "split"),
        ("zzz", None),
    ],
)
def test_the_nearest_column_is_suggested(wrong, right):
    assert find_similar_word(wrong, COLUMNS) in ([right] if right else COLUMNS)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("fixd,moving", ["a,b"], r"column 'fixd' is unknown; do you mean 'fixed'\?"),
        ("fixed,moving,moving_lables", ["a,b,c"], "do you mean 'moving_labels'"),
        ("fixed,name", ["a,x"], "row 1: the column 'moving' must name an image"),
        ("fixed,moving", ["a,b", "a,"], "row 2: the column 'moving' must name an image"),
        ("fixed,moving", ["a,b", "a"], "row 2: the column 'moving' must name an image"),
        ("fixed,moving", ["a,b", "a,c"], r"row 2, column moving: .*c does not exist\."),
        ("fixed,moving,fixed_mask", ["a,x,y"], r"column moving: .*x does .* \(1 more are missing"),
        ("fixed,moving", [], "contains no pairs"),
        ("fixed,moving,split", ["a,b,train", "a,b,"], "row 2, column split: '' must be one of"),
        ("fixed,moving,split", ["a,b,valid"], "'valid' must be one of train, val, test"),
        ("fixed,moving", ["a,b", "b,a", "a,b"], "row 3: another pair above is also named a_b"),
        ("fixed,moving,name", ["a,b,x", "b,a,x"], "row 2: another pair above is also named x"),
        ("fixed,moving", ['a,"b'], "pairs.csv, line 2: cannot be read as a CSV"),
    ],
)
def test_faults_of_a_table_are_named(header, rows, message, tmp_path):
    write_empty(tmp_path, "a", "b")
    table = write_table(tmp_path, *rows, header=header)
    with pytest.raises(UserError, match=message):
        list_csv_pairs("train", listed, table)


def test_a_missing_or_empty_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: this file is missing"):
        list_csv_pairs("train", listed, str(tmp_path / "none.csv"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match=r"empty\.csv: is empty"):
        list_csv_pairs("train", listed, str(tmp_path / "empty.csv"))
    with pytest.raises(UserError, match="table: contains no pairs"):
        list_csv_pairs("train", listed, [])


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to lungct_elastix")
def test_landmarks_of_the_lung_are_35_7_mm_apart_with_no_registration(composed):
    (pair,) = instantiate_config(
        composed("evaluate", "data=lungct", "model=identity").data
    ).make_dataset("test")
    apart = (pair["fixed_points"] - pair["moving_points"]) * pair["spacing"]
    assert apart.norm(dim=1).mean() == pytest.approx(35.66, abs=0.05)
    assert pair["fixed_points"].shape == (26, 3)
    assert pair["fixed"].shape == pair["moving_mask"].shape
