import numpy as np
import pytest

from regnet_lab.data.case import LandmarkFile
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
    return (
        "MNI Tag Point File\nVolumes = 2;\n%made by hand\n\nPoints =\n" + "\n".join(lines) + ";\n"
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
    "pair.tag": (tag(np.c_[VOXELS + 9, VOXELS]), (3, 4, 5)),
    "list.txt": ("index\n3\n" + rows(VOXELS, " "), (0, 1, 2)),
    "list.pts": ("point\n3\n" + rows(VOXELS, " "), (0, 1, 2)),
    "cloud.vtk": (vtk(VOXELS), (0, 1, 2)),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_published_form_gives_the_same_landmarks(tmp_path, name):
    text, columns = TABLES[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    read = read_landmarks(LandmarkFile(tmp_path / name, columns), AFFINE)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VOXELS)


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
