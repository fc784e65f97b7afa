import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from tests.helpers.geometry import affine_matrix

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def oblique(ndim):
    degrees = (10, -25, 40) if ndim == 3 else (0, 0, 40)
    return affine_matrix(degrees, (1.5, 0.7, 2.5), (-30, 12, 50 if ndim == 3 else 0))


def array_of(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@SHAPES
def test_an_image_has_its_voxels_where_itk_has_them(shape):
    affine = oblique(len(shape))
    image = coordinates.to_image(array_of(shape), affine)
    index = [3, 5, 2][: len(shape)]
    lps = np.array(image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index]))
    ras = coordinates.voxel_to_world(affine, np.array([index], float))[0]
    np.testing.assert_allclose(coordinates.flip_points(ras[None])[0, : len(shape)], lps, atol=1e-9)
    assert image.GetPixel(index) == array_of(shape)[tuple(index)]


@SHAPES
def test_the_affine_survives_the_way_through_itk(shape):
    affine = oblique(len(shape))
    back = coordinates.affine_of(coordinates.to_image(array_of(shape), affine))
    kept = [*range(len(shape)), 3]
    np.testing.assert_allclose(back[:, kept], affine[:, kept], atol=1e-9)


def test_itk_and_nibabel_agree_about_a_nifti_file(tmp_path):
    affine = oblique(3)
    nibabel.save(nibabel.Nifti1Image(array_of((7, 8, 9)), affine), tmp_path / "a.nii")
    read = coordinates.affine_of(sitk.ReadImage(str(tmp_path / "a.nii")))
    np.testing.assert_allclose(read, nibabel.load(tmp_path / "a.nii").affine, atol=1e-4)


@SHAPES
def test_voxels_of_two_images_meet_at_the_same_millimetre(shape):
    ndim = len(shape)
    fixed, moving = oblique(ndim), affine_matrix((0, 0, 65), (0.9, 1.1, 3), (5, -7, 0))
    points = np.random.default_rng(1).uniform(0, 9, (5, ndim))
    there = coordinates.transform(coordinates.voxel_to_voxel(fixed, moving, ndim), points)
    np.testing.assert_allclose(
        coordinates.voxel_to_world(moving, there)[:, :ndim],
        coordinates.voxel_to_world(fixed, points)[:, :ndim],
        atol=1e-9,
    )


def test_a_point_beside_a_plane_goes_to_its_projection():
    moving, fixed = np.eye(4), np.eye(4)
    fixed[:3, 3] = 4, 5, 6
    moved = coordinates.transform(
        coordinates.voxel_to_voxel(fixed, moving, 2), np.array([[1.0, 2.0]])
    )
    np.testing.assert_allclose(moved, [[5, 7]])


def test_perpendicular_planes_are_refused():
    with pytest.raises(UserError, match="perpendicular"):
        coordinates.voxel_to_voxel(affine_matrix((90, 0, 0), (1, 1, 1), (0, 0, 0)), np.eye(4), 2)


@SHAPES
def test_world_to_voxel_undoes_voxel_to_world(shape):
    points = np.random.default_rng(2).uniform(0, 9, (4, len(shape)))
    affine = oblique(len(shape))
    there = coordinates.voxel_to_world(affine, points)[:, : len(shape)]
    np.testing.assert_allclose(coordinates.world_to_voxel(affine, there), points, atol=1e-9)


def test_spacing_is_the_distance_of_neighbouring_voxels():
    np.testing.assert_allclose(coordinates.spacing(oblique(3)), [1.5, 0.7, 2.5])


def test_a_flipped_matrix_moves_flipped_points():
    matrix, points = oblique(3), array_of((6, 3))
    ras = coordinates.transform(matrix, points)
    lps = coordinates.transform(coordinates.flip_matrix(matrix), coordinates.flip_points(points))
    np.testing.assert_allclose(coordinates.flip_points(lps), ras, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1, 1e3])
def test_regular_affines_are_told_from_singular_ones_at_any_scale(scale):
    assert coordinates.is_regular(np.diag([scale, scale, scale, 1]))
    assert not coordinates.is_regular(np.diag([scale, scale, 0, 1]))
    flat = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert not coordinates.is_regular(flat * scale)


def test_a_sagittal_plane_has_no_2d_image_in_itk():
    with pytest.raises(UserError, match="x-y plane"):
        coordinates.to_image(array_of((4, 5)), affine_matrix((0, 90, 0), (1, 1, 1), (0, 0, 0)))
