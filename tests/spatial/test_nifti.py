"""Geometry of NIfTI headers against SimpleITK's reader and FSL's documented rule."""

import logging
from itertools import product

import nibabel
import numpy as np
import pytest

from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.spatial import Deformation, read_transform, write_transforms
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.nifti import read_header
from tests.helpers.geometry import affine_matrix
from tests.helpers.nifti import MM_PER_UNIT, SHAPE, UNITS, read_itk_affine, write_nifti

SFORM = affine_matrix((10, 20, 30), (1, 2, 3), (5, 6, 7))
QFORM = affine_matrix((-5, 12, 4), (1, 2, 3), (50, 60, 70))
CODES = pytest.mark.parametrize(("sform_code", "qform_code"), [*product((0, 1, 2, 4), (0, 1, 2))])
pytestmark = pytest.mark.usefixtures("silence_itk")
VOXELS = np.zeros(SHAPE)


def shear(amount):
    """Return SFORM with its second axis tilted towards the first."""
    tilted = SFORM.copy()
    tilted[:3, 1] += amount * tilted[:3, 0]
    return tilted


@CODES
@pytest.mark.parametrize(
    ("sform", "unit", "pixdim"),
    [
        (SFORM, 2, None),
        (SFORM, 1, (2, 2, 3)),
        (SFORM @ np.diag([-1, 1, 1, 1]), 3, (-1, 2, 3)),
        (QFORM, 0, (0, 2, 3)),
        (shear(0.3), 2, None),
        (shear(5e-5), 2, None),
    ],
)
def test_an_image_lies_where_itk_places_it(tmp_path, sform_code, qform_code, sform, unit, pixdim):
    codes = sform_code, qform_code
    path = write_nifti(tmp_path / "a.nii", VOXELS, sform, QFORM, *codes, unit, pixdim)
    affine = decode_image(path).affine
    try:
        expected = read_itk_affine(path)
    except RuntimeError:  # ITK reads no sheared sform
        assert sform_code > 0
        assert qform_code == 0
        expected = np.diag([*[MM_PER_UNIT[unit]] * 3, 1]) @ sform
    np.testing.assert_allclose(affine, expected, rtol=1e-5, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("seed", range(5))
def test_half_turns_have_itks_rounding(tmp_path, seed):
    degrees = 180 - 10 ** np.random.default_rng(seed).uniform(-4, -1)
    turned = affine_matrix((degrees, 0, 7), (1, 1, 1), (1, 2, 3))
    path = write_nifti(tmp_path / "a.nii", VOXELS, turned, turned, sform_code=0)
    np.testing.assert_allclose(decode_image(path).affine, read_itk_affine(path), atol=1e-6)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.hdr"])
def test_units_are_read_from_packed_and_paired_files(tmp_path, name):
    image = nibabel.Nifti1Image if name.endswith("gz") else nibabel.Nifti1Pair
    image = image(np.zeros(SHAPE, np.float32), SFORM)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / name)
    expected = np.diag([1e-3, 1e-3, 1e-3, 1]) @ SFORM
    np.testing.assert_allclose(decode_image(tmp_path / name).affine, expected, rtol=1e-5)


def test_analyze_files_are_read_as_before(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(np.zeros(SHAPE, np.float32), None), tmp_path / "a.hdr")
    expected = nibabel.load(tmp_path / "a.hdr").affine
    np.testing.assert_array_equal(decode_image(tmp_path / "a.hdr").affine, expected)
    assert read_header(tmp_path / "a.hdr") is None


def test_differing_qform_and_sform_are_named_with_their_distance(tmp_path, caplog):
    path = write_nifti(tmp_path / "a.nii", VOXELS, SFORM, QFORM, 2, 1)
    corners = np.array([*product((0, 3), (0, 4), (0, 5), (1,))])
    distance = np.linalg.norm(corners @ (SFORM - QFORM).T, axis=1).max()
    decode_image(path)
    decode_image(path)
    (message,) = caplog.messages
    assert f"{path}: its qform is used, as in ITK; its sform" in message
    assert f"{distance:.3g} mm" in message


@pytest.mark.parametrize(
    ("sform", "codes", "pixdim", "words"),
    [
        (SFORM, (1, 1), (1, 2, 3.5), "the voxel size of its sform"),
        (SFORM, (0, 0), None, "neither qform nor sform"),
        (shear(0.3), (1, 0), None, "not perpendicular"),
        (shear(0.3), (1, 1), None, "its qform is used"),
    ],
)
def test_doubtful_headers_are_logged(tmp_path, caplog, sform, codes, pixdim, words):
    caplog.set_level(logging.INFO)
    decode_image(write_nifti(tmp_path / "a.nii", VOXELS, sform, QFORM, *codes, 2, pixdim))
    assert any(words in message for message in caplog.messages)


def test_equal_headers_are_not_logged(tmp_path, caplog):
    for codes in ((1, 1), (2, 1), (1, 0), (0, 1)):
        decode_image(write_nifti(tmp_path / "a.nii", VOXELS, SFORM, SFORM, *codes))
    assert not caplog.messages


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (0, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("unit", UNITS)
def test_displacement_fields_lie_where_itk_places_them(tmp_path, codes, unit):
    field = np.random.default_rng(0).normal(size=(*SHAPE, 1, 3))
    path = tmp_path / "warp.nii"
    write_nifti(path, field, SFORM, QFORM, *codes, unit, intent=1007)
    affine = np.diag([-1, -1, 1, 1]) @ read_itk_affine(path)
    point = (affine @ [1, 2, 3, 1])[:3]
    moved = read_transform(path).TransformPoint(point.tolist())
    np.testing.assert_allclose(moved - point, field[1, 2, 3, 0], atol=1e-4)


def compute_fsl_coordinates(path, index):
    """Compute FSL's coordinates of voxels (N, 3): pixdim whatever its unit, left-handed."""
    header = nibabel.load(path).header
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    form = sform if sform_code else qform if qform_code else np.diag([-1, 1, 1, 1])
    index = np.array(index, float)
    if np.linalg.det(form[:3, :3]) > 0:
        index[:, 0] = header["dim"][1] - 1 - index[:, 0]
    return index * np.abs(header["pixdim"][1:4])


def make_file_grid(path, *geometry):
    """Write an image and return its grid with its header."""
    affine = decode_image(write_nifti(path, VOXELS, *geometry)).affine
    return ImageGrid(SHAPE, affine, read_header(path))


@pytest.mark.parametrize(
    ("codes", "unit", "mirrored"),
    [
        ((1, 0), 2, False),
        ((0, 1), 3, True),
        ((0, 0), 2, False),
        ((0, 0), 3, False),
        ((1, 2), 3, False),
        ((2, 1), 2, True),
    ],
)
def test_fsl_files_hold_in_fsls_reading_of_the_images(tmp_path, codes, unit, mirrored):
    mirror = np.diag([-1 if mirrored else 1, 1, 1, 1])
    geometry = SFORM @ mirror, QFORM @ mirror, *codes, unit
    fixed = make_file_grid(tmp_path / "fixed.nii", *geometry)
    moving = make_file_grid(tmp_path / "moving.nii", QFORM, QFORM, 1, 1, 2)
    u = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    matrix = affine_matrix((0, 0, 8), (1.1, 0.95, 1), (2, -3, 0))
    deformation = Deformation(fixed, moving, matrix, u)
    write_transforms(tmp_path, deformation, ["fsl"])
    index = np.argwhere(np.ones(SHAPE))
    warp = nibabel.load(tmp_path / "fsl_warp.nii.gz")
    at = index + u.reshape(3, -1).T
    homogeneous = np.c_[at, np.ones(len(at))]
    mapped = homogeneous @ (np.linalg.inv(moving.affine) @ matrix @ fixed.affine).T
    expected = compute_fsl_coordinates(tmp_path / "moving.nii", mapped[:, :3])
    found = compute_fsl_coordinates(tmp_path / "fixed.nii", index) + warp.get_fdata().reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    in_warp = compute_fsl_coordinates(tmp_path / "fsl_warp.nii.gz", index)
    in_fixed = compute_fsl_coordinates(tmp_path / "fixed.nii", index)
    np.testing.assert_allclose(in_warp, in_fixed, atol=1e-5)
    flirt = np.loadtxt(tmp_path / "fsl_affine.mat")
    linear = np.c_[index, np.ones(len(index))]
    linear = linear @ (np.linalg.inv(moving.affine) @ matrix @ fixed.affine).T
    start = compute_fsl_coordinates(tmp_path / "moving.nii", linear[:, :3])
    returned = np.c_[start, np.ones(len(start))] @ flirt.T
    np.testing.assert_allclose(returned[:, :3], in_fixed, atol=1e-3)
    point = (np.diag([-1, -1, 1, 1]) @ fixed.affine @ [1, 2, 3, 1])[:3].tolist()
    again = read_transform(tmp_path / "fsl_warp.nii.gz", moving=moving).TransformPoint(point)
    np.testing.assert_allclose(again, deformation.forward.TransformPoint(point), atol=1e-3)


def test_fsl_is_refused_where_qform_and_sform_mirror_each_other(tmp_path):
    grid = make_file_grid(tmp_path / "a.nii", SFORM @ np.diag([-1, 1, 1, 1]), QFORM, 1, 1)
    deformation = Deformation(grid, grid, np.eye(4), np.zeros((3, *SHAPE), np.float32))
    with pytest.raises(UserError, match=r"fixed image.*mirror each other"):
        write_transforms(tmp_path, deformation, ["fsl"])
