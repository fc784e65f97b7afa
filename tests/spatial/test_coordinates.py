import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.spatial import coordinates
from tests.helpers.geometry import affine_matrix

SHAPES = pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])


def make_oblique_affine(ndim):
    degrees = (10, -25, 40) if ndim == 3 else (0, 0, 40)
    return affine_matrix(degrees, (1.5, 0.7, 2.5), (-30, 12, 50 if ndim == 3 else 0))


def make_array(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@SHAPES
def test_voxels_have_the_same_world_coordinates_in_itk(shape):
    affine = make_oblique_affine(len(shape))
    image = coordinates.array_to_sitk(make_array(shape), affine)
    index = [3, 5, 2][: len(shape)]
    lps = np.array(image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index]))
    ras = coordinates.voxel_to_world(affine, np.array([index], float))[0]
    np.testing.assert_allclose(coordinates.flip_points(ras[None])[0, : len(shape)], lps, atol=1e-9)
    assert image.GetPixel(index) == make_array(shape)[tuple(index)]


@SHAPES
def test_the_affine_is_unchanged_by_conversion_to_itk_and_back(shape):
    affine = make_oblique_affine(len(shape))
    converted = coordinates.affine_from_sitk(coordinates.array_to_sitk(make_array(shape), affine))
    axes = [*range(len(shape)), 3]
    np.testing.assert_allclose(converted[:, axes], affine[:, axes], atol=1e-9)


def test_itk_and_nibabel_read_the_same_affine(tmp_path):
    affine = make_oblique_affine(3)
    nibabel.save(nibabel.Nifti1Image(make_array((7, 8, 9)), affine), tmp_path / "a.nii")
    read = coordinates.affine_from_sitk(sitk.ReadImage(str(tmp_path / "a.nii")))
    np.testing.assert_allclose(read, nibabel.load(tmp_path / "a.nii").affine, atol=1e-4)


@SHAPES
def test_voxels_of_two_images_match_at_the_same_world_point(shape):
    ndim = len(shape)
    fixed, moving = make_oblique_affine(ndim), affine_matrix((0, 0, 65), (0.9, 1.1, 3), (5, -7, 0))
    points = np.random.default_rng(1).uniform(0, 9, (5, ndim))
    mapped = coordinates.apply_affine(
        coordinates.voxel_to_voxel_matrix(fixed, moving, ndim), points
    )
    np.testing.assert_allclose(
        coordinates.voxel_to_world(moving, mapped)[:, :ndim],
        coordinates.voxel_to_world(fixed, points)[:, :ndim],
        atol=1e-9,
    )


def test_points_beside_a_plane_are_projected():
    moving, fixed = np.eye(4), np.eye(4)
    fixed[:3, 3] = 4, 5, 6
    moved = coordinates.apply_affine(
        coordinates.voxel_to_voxel_matrix(fixed, moving, 2), np.array([[1.0, 2.0]])
    )
    np.testing.assert_allclose(moved, [[5, 7]])


def test_perpendicular_planes_are_refused():
    with pytest.raises(UserError, match="perpendicular"):
        coordinates.voxel_to_voxel_matrix(
            affine_matrix((90, 0, 0), (1, 1, 1), (0, 0, 0)), np.eye(4), 2
        )


@SHAPES
def test_world_to_voxel_inverts_voxel_to_world(shape):
    points = np.random.default_rng(2).uniform(0, 9, (4, len(shape)))
    affine = make_oblique_affine(len(shape))
    mapped = coordinates.voxel_to_world(affine, points)[:, : len(shape)]
    np.testing.assert_allclose(coordinates.world_to_voxel(affine, mapped), points, atol=1e-9)


def test_spacing_is_the_distance_of_neighbouring_voxels():
    np.testing.assert_allclose(
        coordinates.affine_to_spacing(make_oblique_affine(3)), [1.5, 0.7, 2.5]
    )


def test_a_flipped_matrix_maps_flipped_points():
    matrix, points = make_oblique_affine(3), make_array((6, 3))
    ras = coordinates.apply_affine(matrix, points)
    lps = coordinates.apply_affine(coordinates.flip_matrix(matrix), coordinates.flip_points(points))
    np.testing.assert_allclose(coordinates.flip_points(lps), ras, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1, 1e3])
def test_singular_affines_are_detected_at_any_scale(scale):
    assert coordinates.is_invertible(np.diag([scale, scale, scale, 1]))
    assert not coordinates.is_invertible(np.diag([scale, scale, 0, 1]))
    flat = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert not coordinates.is_invertible(flat * scale)


def test_a_sagittal_plane_cannot_be_a_2d_image_in_itk():
    with pytest.raises(UserError, match="x-y plane"):
        coordinates.array_to_sitk(
            make_array((4, 5)), affine_matrix((0, 90, 0), (1, 1, 1), (0, 0, 0))
        )
