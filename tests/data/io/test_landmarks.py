import json
import logging

import nibabel
import numpy as np
import pandas as pd
import pytest

from regnet_lab.data.case import Case, LandmarkFile
from regnet_lab.data.io.cases import read_case
from regnet_lab.data.io.landmarks import find_points_outside, read_landmarks
from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -20], [0, 0, 2.5, 10], [0, 0, 0, 1]])
VOXELS = np.array([[1, 2, 3], [4.5, 0.25, 6], [0, 7, 2.125]])


def rows(values, separator):
    return "\n".join(separator.join(str(float(v)) for v in row) for row in values) + "\n"


def tag(values):
    """Two triples for each landmark, as MNI tools write them."""
    lines = [" " + " ".join(f"{v:.4f}" for v in row) + ' 1 1 1 ""' for row in values]
    volumes = values.shape[1] // 3
    return (
        f"MNI Tag Point File\nVolumes = {volumes};\n%made by hand\n\nPoints =\n"
        + "\n".join(lines)
        + ";\n"
    )


def vtk(values):
    numbers = [f"{v:.4f}" for v in values.ravel()]
    wrapped = "\n".join(" ".join(numbers[i : i + 9]) for i in range(0, len(numbers), 9))
    return (
        "# vtk DataFile Version 3.0\nlandmarks\nASCII\nDATASET POLYDATA\n"
        f"POINTS {len(values)} float\n{wrapped}\nVERTICES 1 2\n1 0\n"
    )


TABLES = {
    "plain.csv": (rows(VOXELS, ","), (0, 1, 2)),
    "spaced.csv": (rows(VOXELS, ", "), (0, 1, 2)),
    "semicolons.csv": (rows(VOXELS, ";"), (0, 1, 2)),
    "decimal_commas.csv": (rows(VOXELS, ";").replace(".", ","), (0, 1, 2)),
    "header.csv": ("x,y,z\n" + rows(VOXELS, ","), ("x", "y", "z")),
    "numbered.csv": ("id,x,y,z\n" + rows(np.c_[[7, 8, 9], VOXELS], ","), (1, 2, 3)),
    "histology.csv": (" ,X,Y,Z\n" + rows(np.c_[[7, 8, 9], VOXELS], ","), ("X", "Y", "Z")),
    "named.csv": ("P1,1,2,3\nP2,4.5,.25,6\nP3,0,7,2.125", (1, 2, 3)),
    "blanks.txt": ("# a remark\n\n" + rows(VOXELS, "  "), (0, 1, 2)),
    "tabs.txt": (rows(VOXELS, "\t"), (0, 1, 2)),
    "windows.csv": ("\ufeffx,y,z\r\n" + rows(VOXELS, ",").replace("\n", "\r\n"), ("x", "y", "z")),
    "pair.txt": (rows(np.c_[VOXELS + 9, VOXELS], ","), (3, 4, 5)),
    "list.txt": ("index\n3\n" + rows(VOXELS, " "), (0, 1, 2)),
    "cloud.vtk": (vtk(VOXELS), (0, 1, 2)),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_published_form_gives_the_same_landmarks(tmp_path, name):
    text, columns = TABLES[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    read = read_landmarks(LandmarkFile(tmp_path / name, columns), AFFINE)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VOXELS)


RAS = coordinates.voxel_to_world(AFFINE, VOXELS)
LPS = RAS * [-1, -1, 1]


def fcsv(points, system):
    """A fiducial list as 3D Slicer writes it, with labels that contain a comma."""
    lines = [f'{n},{x!r},{y!r},{z!r},0,0,0,1,1,1,0,"F, {n}",,vtkMRMLScalarVolumeNode1'
             for n, (x, y, z) in enumerate(points.tolist(), start=7)]  # fmt: skip
    comments = ["# Markups fiducial file version = 4.11"]
    comments += [f"# CoordinateSystem = {system}"] if system else []
    comments += ["# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"]
    return "\n".join(comments + lines) + "\n"


def markups(points, **changes):
    """A point list as 3D Slicer 5 writes it."""
    control = [
        {"id": str(n), "label": f"F-{n}", "position": p, "positionStatus": "defined"}
        for n, p in enumerate(points.tolist(), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm"}
    return json.dumps({"markups": [{**markup, "controlPoints": control, **changes}]})


def transformix(points):
    """The file outputpoints.txt of transformix."""
    lines = [
        f"Point\t{n}\t; InputIndex = [ 1 2 3 ]\t; InputPoint = [ 9 9 9 ]\t; OutputIndexFixed = "
        f"[ 4 5 6 ]\t; OutputPoint = [ {x!r} {y!r} {z!r} ]\t; Deformation = [ 1 1 1 ]"
        for n, (x, y, z) in enumerate(points.tolist())
    ]
    return "\n".join(lines) + "\n"


def named(points, names, first="id"):
    """A table with a column that counts the landmarks, and one of labels behind."""
    numbered = [f"{n},{x!r},{y!r},{z!r},F{n}" for n, (x, y, z) in enumerate(points.tolist())]
    return "\n".join([f"{first},{names},label", *numbered]) + "\n"


STATED = {  # forms that say themselves in which coordinates they are
    "current.fcsv": fcsv(LPS, "LPS"),
    "older.fcsv": fcsv(RAS, "RAS"),
    "old.fcsv": fcsv(RAS, "0"),
    "old_lps.fcsv": fcsv(LPS, "1"),
    "old_ijk.fcsv": fcsv(VOXELS, "2"),
    "oldest.fcsv": fcsv(RAS, None),
    "points.mrk.json": markups(LPS),
    "ras.mrk.json": markups(RAS, coordinateSystem="RAS"),
    "one_volume.tag": tag(RAS),
    "list.pts": "point\n3\n" + rows(LPS, " "),
    "list.txt": "index\n3\n" + rows(VOXELS, " "),
    "outputpoints.txt": transformix(LPS),
    "fsl_mm.txt": "Coordinates in Destination volume (in mm)\n" + rows(RAS, "  "),
    "fsl_voxels.txt": "Coordinates in Destination volume (in voxels)\n" + rows(VOXELS, "  "),
    "ras.csv": named(RAS, "R,A,S"),
    "lps.csv": named(LPS, "L (mm),P (mm),S (mm)"),
    "ijk.csv": named(VOXELS, "i,j,k"),
}


@pytest.mark.parametrize("space", ["voxel", "ras", "lps"])
@pytest.mark.parametrize("name", STATED)
def test_a_file_that_states_its_coordinates_is_read_in_them(tmp_path, name, space, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / name).write_text(STATED[name], encoding="utf-8")
    for _ in range(2):
        read = read_landmarks(LandmarkFile(tmp_path / name, space=space), AFFINE)
    np.testing.assert_allclose(read, VOXELS, atol=2e-4)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) <= 1
    assert all(f"used instead of {space}" in message for message in messages)


NAMED = {
    "id first": ("x,y,z", "id"),
    "index of pandas": ("x,y,z", ""),
    "capitals": ("X,Y,Z", "Landmark"),
    "units": ("x [mm],y [mm],z [mm]", "n"),
    "suffix": ("x_mm,y_mm,z_mm", "i"),
    "prefix": ("pos_x,pos_y,pos_z", "name"),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_are_found_by_their_names(tmp_path, kind, delimiter):
    text = named(RAS, *NAMED[kind]).replace(",", delimiter)
    if delimiter != ",":
        text = text.replace(".", ",")  # decimal commas
    (tmp_path / "points.csv").write_text(text, encoding="latin-1")
    read = read_landmarks(LandmarkFile(tmp_path / "points.csv", space="ras"), AFFINE)
    np.testing.assert_allclose(read, VOXELS, atol=1e-5)


@pytest.mark.parametrize("header", ["", "a remark\n", "0,1,2\n", "x,y,z\n"])
def test_three_columns_need_no_choice(tmp_path, header):
    text = header.replace("a remark", "# a remark") + rows(VOXELS, ",")
    (tmp_path / "points.csv").write_text(text)
    read = read_landmarks(LandmarkFile(tmp_path / "points.csv"), AFFINE)
    np.testing.assert_array_equal(read, VOXELS)


def test_columns_that_the_user_chooses_are_taken(tmp_path):
    (tmp_path / "points.csv").write_text("x,y,z,u,v,w\n1,2,3,4,5,6\n")
    read = read_landmarks(LandmarkFile(tmp_path / "points.csv", ("u", 4, "w")), AFFINE)
    np.testing.assert_array_equal(read, [[4, 5, 6]])


UNCLEAR = {
    "four columns without names": ("a.csv", "1,2,3,4\n", "up to 4 columns without names"),
    "other names": (
        "a.csv",
        "id,first,second,third\n1,2,3,4\n",
        "there is not exactly one x, y and z",
    ),
    "names that occur twice": ("a.csv", "x,y,z,x,y,z\n1,2,3,4,5,6\n", "not exactly one x"),
    "a row longer than the header": ("a.csv", "x,y,z\n1,2,3\n1,2,3,4\n", "line 3: has 4 fields"),
    "two volumes": (
        "a.tag",
        tag(np.c_[RAS, RAS]),
        "its columns x1, y1, z1, x2.* not exactly one x",
    ),
    "an unknown system": ("a.fcsv", fcsv(RAS, "MNI"), "CoordinateSystem = MNI is unknown"),
    "an unknown system of markups": ("a.json", markups(RAS, coordinateSystem="X"), "X is unknown"),
    "another unit": ("a.mrk.json", markups(RAS, coordinateUnits="um"), "coordinateUnits um"),
    "an undefined point": (
        "a.mrk.json",
        markups(RAS).replace('"defined"', '"undefined"', 1),
        "point 'F-1' has no defined position",
    ),
    "two markups": ("a.mrk.json", '{"markups": [{}, {}]}', "has 2 markups instead of one"),
    "another JSON": ("a.json", '{"points": []}', "no markups with controlPoints"),
    "no JSON": ("a.json", "{", "no markups with controlPoints"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_file_that_can_be_misread_is_refused(tmp_path, kind):
    name, text, reason = UNCLEAR[kind]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*{reason}") as caught:
        read_landmarks(LandmarkFile(tmp_path / name), AFFINE)
    assert "\n" not in str(caught.value)


def make_case(folder, points, space):
    """An image of 20 x 30 x 10 voxels, which lies far from the origin, with landmarks."""
    affine = AFFINE.copy()
    affine[:3, 3] = 90, -120, 400
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 30, 10)), affine), folder / "image.nii")
    written = points if space == "voxel" else coordinates.voxel_to_world(affine, points)
    written = coordinates.flip_points(written) if space == "lps" else written
    np.savetxt(folder / "points.csv", written, delimiter=",")
    return folder / "image.nii", folder / "points.csv"


@pytest.mark.parametrize("used", ["voxel", "ras", "lps"])
@pytest.mark.parametrize("true", ["voxel", "ras", "lps"])
def test_landmarks_in_other_coordinates_than_given_are_refused(tmp_path, true, used):
    points = np.random.default_rng(0).uniform(0, (19, 29, 9), (6, 3))
    image, table = make_case(tmp_path, points, true)
    case = Case("a", image, points=LandmarkFile(table, space=used))
    if true == used:
        np.testing.assert_allclose(read_case(case).points, points, atol=1e-4)
        return
    with pytest.raises(UserError, match=rf"read in {used} coord.* with points_space={true}"):
        read_case(case)


@pytest.mark.parametrize("far", [False, True])
def test_few_landmarks_near_the_image_are_only_mentioned(tmp_path, far, caplog):
    points = np.random.default_rng(0).uniform(0, (19, 29, 9), (6, 3))
    points[4, 2] = 35 if far else 12
    image, table = make_case(tmp_path, points, "voxel")
    case = Case("a", image, points=LandmarkFile(table))
    if far:
        with pytest.raises(UserError, match=r"1 of 6 landmarks .* number 5 .* check the columns"):
            read_case(case)
        return
    np.testing.assert_allclose(read_case(case).points, points, atol=1e-4)
    (record,) = caplog.records
    assert "1 of 6 landmarks lie outside the image" in record.getMessage()


@pytest.mark.parametrize("space", ["ras", "lps"])
def test_landmarks_in_millimetres_become_voxels(tmp_path, space):
    ras = coordinates.voxel_to_world(AFFINE, VOXELS)
    written = ras * [-1, -1, 1] if space == "lps" else ras
    (tmp_path / "mm.csv").write_text(rows(written, ","))
    read = read_landmarks(LandmarkFile(tmp_path / "mm.csv", space=space), AFFINE)
    np.testing.assert_allclose(read, VOXELS, atol=1e-5)


def test_landmarks_of_a_picture_have_two_columns_and_a_scale(tmp_path):
    (tmp_path / "he_scale50pc.csv").write_text(",X,Y\n1,200,40\n2,10,60\n")
    points = LandmarkFile(tmp_path / "he_scale50pc.csv", ("X", "Y"), scale=0.1)
    np.testing.assert_allclose(read_landmarks(points, np.eye(4)), [[20, 4], [1, 6]])


FAULTS = {
    "a missing column by name": ("x,y\n1,2\n", ("x", "y", "z"), r"no column 'z'.*x, y"),
    "a name without a header": (
        "1,2,3\n",
        ("x", "y", "z"),
        "no column 'x'; the file has no column names",
    ),
    "a missing column by number": ("1,2,3\n4,5\n", (0, 1, 2), "line 2: there is no column 2"),
    "a word": ("x,y,z\n1,2,3\n4,five,6\n", (0, 1, 2), "line 3: 'five' in column 1"),
    "a number that is not one": ("1,2,3\n4,nan,6\n", (0, 1, 2), "line 2: 'nan' in column 1"),
    "an infinite number": ("1,2,3\n4,6,inf\n", (0, 1, 2), "line 2: 'inf' in column 2"),
    "an empty field": ("1,2,3\n4,,6\n", (0, 1, 2), "line 2: '' in column 1"),
    "no rows": ("x,y,z\n", (0, 1, 2), "contains no landmarks"),
    "nothing": ("", (0, 1, 2), "contains no landmarks"),
    "a list without its number": ("point\n1 2 3\n", (0, 1, 2), "not a number of landmarks"),
    "a list that stops": ("point\n", (0, 1, 2), "ends before"),
    "a list that is too short": ("point\n3\n1 2 3\n", (0, 1, 2), "declares 3 landmarks.*1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_named_with_its_place(tmp_path, fault):
    text, columns, message = FAULTS[fault]
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(UserError, match=rf"points\.csv.*{message}"):
        read_landmarks(LandmarkFile(tmp_path / "points.csv", columns), AFFINE)


def test_a_truncated_or_binary_vtk_file_is_refused(tmp_path):
    path = tmp_path / "cloud.vtk"
    path.write_text(vtk(VOXELS).split("VERTICES")[0].replace("2.1250", ""))
    with pytest.raises(UserError, match="declares 3 landmarks"):
        read_landmarks(LandmarkFile(path), AFFINE)
    path.write_text(vtk(VOXELS).replace("ASCII", "BINARY"))
    with pytest.raises(UserError, match="contains no landmarks"):
        read_landmarks(LandmarkFile(path), AFFINE)
    path.write_bytes(b"# vtk DataFile Version 3.0\nx\nBINARY\n\xff\xfe\xb0\x01")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_landmarks(LandmarkFile(path), AFFINE)


def test_a_missing_file_and_an_unknown_space_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.csv: this file is missing"):
        read_landmarks(LandmarkFile(tmp_path / "absent.csv"), AFFINE)
    (tmp_path / "a.csv").write_text("1,2,3\n")
    with pytest.raises(UserError, match="space 'mni' must be"):
        read_landmarks(LandmarkFile(tmp_path / "a.csv", space="mni"), AFFINE)


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_landmarks_beyond_the_outermost_voxels_are_outside(shape):
    edge = np.array(shape) - 0.5
    points = np.array([edge, edge + 0.01, edge / 2, edge / 2, edge * 0 - 0.5])
    points[3, -1] = -0.51
    np.testing.assert_array_equal(
        find_points_outside(points, shape), [False, True, False, True, False]
    )


POINTS = np.array([[1.0, 2, 3], [4, 5, 6], [2, 2, 5]])


@pytest.mark.parametrize("header", ["z,y,x", "z y x"])
def test_column_names_in_a_comment_are_used(tmp_path, header):
    path = tmp_path / "points.txt"
    delimiter = "," if "," in header else " "
    np.savetxt(path, POINTS[:, ::-1], delimiter=delimiter, header=header)
    points = read_landmarks(LandmarkFile(path, None), np.eye(4))
    np.testing.assert_allclose(points, POINTS)


def test_a_comment_may_state_the_space(tmp_path):
    path = tmp_path / "points.txt"
    np.savetxt(path, POINTS * [-1, -1, 1], delimiter=",", header="L,P,S")
    points = read_landmarks(LandmarkFile(path, None), np.eye(4))
    np.testing.assert_allclose(points, POINTS)


def test_a_comment_that_names_no_columns_is_left_out(tmp_path):
    path = tmp_path / "points.txt"
    np.savetxt(path, POINTS, delimiter=",", header="made by hand, in March")
    np.testing.assert_allclose(read_landmarks(LandmarkFile(path, None), np.eye(4)), POINTS)


def test_the_unit_in_the_names_of_columns_counts(tmp_path):
    path = tmp_path / "points.csv"
    pd.DataFrame(POINTS, columns=["x_mm", "y_mm", "z_mm"]).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"in mm, not in voxels; set points_space=ras or lps"):
        read_landmarks(LandmarkFile(path, None), np.eye(4))
    scaled = np.diag([2.0, 2, 2, 1])
    points = read_landmarks(LandmarkFile(path, None, "ras"), scaled)
    np.testing.assert_allclose(points, POINTS / 2)
    pd.DataFrame(POINTS, columns=["x_vox", "y_vox", "z_vox"]).to_csv(path, index=False)
    points = read_landmarks(LandmarkFile(path, None, "ras"), scaled)
    np.testing.assert_allclose(points, POINTS)


def test_columns_that_pandas_has_numbered_are_no_landmark(tmp_path):
    path = tmp_path / "points.csv"
    pd.DataFrame(POINTS.astype(int)).to_csv(path, index=False)
    np.testing.assert_allclose(read_landmarks(LandmarkFile(path, None), np.eye(4)), POINTS)
