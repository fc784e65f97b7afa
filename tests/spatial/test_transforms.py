"""Transform files against SimpleITK, scipy and, if installed, ANTs."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab import ops
from regnet_lab.data.io.images import decode_image
from regnet_lab.errors import UserError
from regnet_lab.spatial import (
    Deformation,
    compose_transforms,
    coordinates,
    read_transform,
    write_transforms,
)
from regnet_lab.spatial.image_grid import ImageGrid, matrix_to_transform, transform_to_matrix
from regnet_lab.spatial.writers import write_image
from tests.helpers.geometry import affine_matrix

NDIMS = pytest.mark.parametrize("ndim", [2, 3])


def make_grids(ndim):
    """Return an oblique fixed and another moving grid, both anisotropic."""
    tilt = (10, -25, 40) if ndim == 3 else (0, 0, 40)
    turn = (-20, 5, -15) if ndim == 3 else (0, 0, -15)
    is_3d = ndim == 3
    fixed = affine_matrix(tilt, (1.5, 0.7, 2.5), (-30, 12, 50 * is_3d))
    moving = affine_matrix(turn, (0.9, 1.3, 1.7), (-38, 3, 45 * is_3d))
    return ImageGrid((20, 27, 11)[:ndim], fixed), ImageGrid((40, 25, 30)[:ndim], moving)


def make_deformation(ndim):
    """Return a smooth displacement of some voxels with an affine map."""
    rng = np.random.default_rng(ndim)
    fixed, moving = make_grids(ndim)
    u = np.stack([gaussian_filter(rng.normal(size=fixed.shape), 4) for _ in range(ndim)])
    u *= 1.5 / np.abs(u).max()
    matrix = affine_matrix((0, 0, 8), (1.1, 0.95, 1), (2, -3, 0))
    return Deformation(fixed, moving, matrix, u.astype(np.float32))


def make_image(grid):
    """Return an image so smooth that rounding of coordinates to float32 does not matter."""
    array = gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), 1.5)
    return (100 * array / np.abs(array).max()).astype(np.float32)


def compute_moving_indices(deformation):
    """Compute the moving indices (D, *spatial) of all fixed voxels, step by step."""
    at = np.indices(deformation.fixed.shape) + deformation.u
    points = at.reshape(len(at), -1).T
    mapped = coordinates.voxel_to_world(deformation.fixed.affine, points)
    mapped = coordinates.apply_affine(deformation.matrix, mapped)[:, : len(at)]
    return coordinates.world_to_voxel(deformation.moving.affine, mapped).T.reshape(at.shape)


def warp_directly(image, deformation):
    points = torch.from_numpy(compute_moving_indices(deformation)).float()[None]
    warped = ops.sample(torch.from_numpy(image)[None, None], points)[0, 0].numpy()
    last = np.reshape(deformation.moving.shape, (-1, *[1] * image.ndim)) - 0.5
    inside = ((points[0].numpy() > -0.5) & (points[0].numpy() < last)).all(0)
    return np.where(inside, warped, 0), inside


def warp_with_itk(image, deformation, transform):
    moving = coordinates.array_to_sitk(image, deformation.moving.affine)
    return sitk.GetArrayFromImage(
        sitk.Resample(moving, deformation.fixed.to_sitk(), transform, sitk.sitkLinear, 0.0)
    ).T


@NDIMS
@pytest.mark.parametrize(
    ("fmt", "files"),
    [
        ("itk", ["Composite.h5"]),
        ("field", ["displacement.nii.gz"]),
        ("ants", ["1Warp.nii.gz", "0GenericAffine.mat"]),
        ("fsl", ["fsl_warp.nii.gz"]),
        ("learn2reg", ["l2r_displacement.npz"]),
        ("learn2reg", ["l2r_displacement.nii.gz"]),
    ],
)
def test_simpleitk_resamples_equally_through_every_format(tmp_path, ndim, fmt, files):
    deformation = make_deformation(ndim)
    if (ndim, fmt) == (2, "fsl"):
        with pytest.raises(UserError, match="3D"):
            write_transforms(tmp_path, deformation, [fmt])
        return
    write_transforms(tmp_path, deformation, [fmt])
    image = make_image(deformation.moving)
    expected, inside = warp_directly(image, deformation)
    read = compose_transforms(
        [read_transform(tmp_path / f, deformation.fixed, deformation.moving) for f in files]
    )
    assert inside.mean() > 0.3
    resampled = warp_with_itk(image, deformation, read)
    indices = compute_moving_indices(deformation)
    faces = np.abs(indices + 0.5 - np.clip(np.rint(indices + 0.5), 0, 99)).min(0) < 1e-3
    assert np.abs(expected - resampled)[~faces].max() < 1e-3 * np.ptp(image)


def test_simpleitk_reads_the_itk_files(tmp_path):
    deformation = make_deformation(3)
    write_transforms(tmp_path, deformation, ["itk", "field"])
    image = make_image(deformation.moving)
    field = sitk.ReadImage(str(tmp_path / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    by_field = warp_with_itk(image, deformation, sitk.DisplacementFieldTransform(field))
    composite = sitk.ReadTransform(str(tmp_path / "Composite.h5"))
    by_composite = warp_with_itk(image, deformation, composite)
    assert np.abs(by_field - by_composite).max() < 1e-3 * np.ptp(image)
    header = nibabel.load(tmp_path / "displacement.nii.gz").header
    assert header["dim"][:6].tolist() == [5, *deformation.fixed.shape, 1, 3]
    assert int(header["intent_code"]) == 1007


@NDIMS
def test_itk_transforms_map_landmarks_equally(tmp_path, ndim):
    deformation = make_deformation(ndim)
    write_transforms(tmp_path, deformation, ["itk"])
    read = read_transform(tmp_path / "Composite.h5")
    index = np.random.default_rng(1).uniform(1, 9, (20, ndim))
    u = np.stack([map_coordinates(c, index.T, order=1) for c in deformation.u], 1)
    expected = coordinates.voxel_to_world(deformation.fixed.affine, index + u)
    expected = coordinates.flip_points(
        coordinates.apply_affine(deformation.matrix, expected)[:, :ndim]
    )
    fixed = coordinates.flip_points(
        coordinates.voxel_to_world(deformation.fixed.affine, index)[:, :ndim]
    )
    resampled = [read.TransformPoint(point) for point in fixed.tolist()]
    np.testing.assert_allclose(resampled, expected, atol=1e-3)


@NDIMS
def test_forward_and_backward_transforms_differ_by_the_inverse_error(tmp_path, ndim):
    deformation = make_deformation(ndim)
    write_transforms(tmp_path, deformation, ["itk"])
    forward = read_transform(tmp_path / "Composite.h5")
    backward = read_transform(tmp_path / "InverseComposite.h5")
    stated = deformation.inverse_error
    assert np.isfinite(stated).mean() > 0.5
    assert np.nanmax(stated) < 0.2
    for index in np.argwhere(np.isfinite(stated))[::37]:
        point = coordinates.flip_points(
            coordinates.voxel_to_world(deformation.fixed.affine, index[None])[:, :ndim]
        )
        returned = backward.TransformPoint(forward.TransformPoint(point[0].tolist()))
        error = np.linalg.norm(np.array(returned) - point[0])
        assert error == pytest.approx(stated[tuple(index)], abs=1e-3)


def test_the_inverse_error_is_large_where_the_map_folds():
    deformation = make_deformation(3)
    folded = Deformation(
        deformation.fixed, deformation.moving, deformation.matrix, deformation.u * 12
    )
    assert np.nanmax(folded.inverse_error) > 0.5


def to_fsl_coordinates(grid, index):
    """Compute the coordinates of applywarp for every point."""
    index = np.array(index, float)
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        index[:, 0] = grid.shape[0] - 1 - index[:, 0]
    return index * np.linalg.norm(grid.affine[:3, :3], axis=0)


@pytest.mark.parametrize("flipped", [False, True])
def test_fsl_warps_and_matrices_follow_fsl_conventions(tmp_path, flipped):
    deformation = make_deformation(3)
    if flipped:  # a moving image whose header is left-handed
        mirror = np.diag([-1.0, 1, 1, 1])
        mirror[0, 3] = deformation.moving.shape[0] - 1
        moving = ImageGrid(deformation.moving.shape, deformation.moving.affine @ mirror)
        deformation = Deformation(deformation.fixed, moving, deformation.matrix, deformation.u)
    write_transforms(tmp_path, deformation, ["fsl"])
    warp = nibabel.load(tmp_path / "fsl_warp.nii.gz")
    assert int(warp.header["intent_code"]) == 2006
    x = np.argwhere(np.ones(deformation.fixed.shape))
    mapped = to_fsl_coordinates(deformation.fixed, x) + warp.get_fdata().reshape(-1, 3)
    expected = compute_moving_indices(deformation).reshape(3, -1).T
    np.testing.assert_allclose(mapped, to_fsl_coordinates(deformation.moving, expected), atol=1e-3)
    flirt = np.loadtxt(tmp_path / "fsl_affine.mat")
    some = np.random.default_rng(0).uniform(0, 9, (5, 3))
    backward = to_fsl_coordinates(deformation.moving, some) @ flirt[:3, :3].T + flirt[:3, 3]
    aligned = coordinates.apply_affine(
        np.linalg.inv(deformation.matrix),
        coordinates.voxel_to_world(deformation.moving.affine, some),
    )
    aligned = coordinates.world_to_voxel(deformation.fixed.affine, aligned)
    np.testing.assert_allclose(backward, to_fsl_coordinates(deformation.fixed, aligned), atol=1e-3)


@NDIMS
def test_every_format_keeps_the_affine_part(tmp_path, ndim):
    deformation = make_deformation(ndim)
    formats = {"itk": "affine.tfm", "ants": "0GenericAffine.mat", "fsl": "fsl_affine.mat"}
    expected = coordinates.restrict_to_axes(deformation.matrix, ndim)
    for fmt, name in [*formats.items()][:ndim]:
        write_transforms(tmp_path, deformation, [fmt])
        read = transform_to_matrix(
            read_transform(tmp_path / name, deformation.fixed, deformation.moving)
        )
        np.testing.assert_allclose(coordinates.restrict_to_axes(read, ndim), expected, atol=1e-4)


def test_learn2reg_between_images_of_one_grid_is_the_displacement(tmp_path):
    deformation = make_deformation(3)
    same = Deformation(deformation.fixed, deformation.fixed, np.eye(4), deformation.u)
    write_transforms(tmp_path, same, ["learn2reg"])
    u = np.load(tmp_path / "l2r_displacement.npz")["arr_0"]
    np.testing.assert_allclose(np.moveaxis(u, -1, 0), deformation.u, atol=1e-4)
    nifti = nibabel.load(tmp_path / "l2r_displacement.nii.gz").get_fdata()
    np.testing.assert_array_equal(nifti, u)


@pytest.mark.parametrize("fmt", ["field", "fsl", "learn2reg"])
def test_inverse_files_lie_on_the_moving_grid_and_map_back(tmp_path, fmt):
    deformation = make_deformation(3)
    write_transforms(tmp_path, deformation, [fmt])
    name = {
        "field": "inverse_displacement.nii.gz",
        "fsl": "fsl_inverse_warp.nii.gz",
        "learn2reg": "l2r_inverse_displacement.npz",
    }[fmt]
    backward = read_transform(tmp_path / name, deformation.moving, deformation.fixed)
    center = np.array([[10.0, 13, 5]])
    start = coordinates.flip_points(coordinates.voxel_to_world(deformation.fixed.affine, center))[
        0
    ].tolist()
    mapped = deformation.forward.TransformPoint(start)
    np.testing.assert_allclose(backward.TransformPoint(mapped), start, atol=0.1)


def test_points_go_through_composed_transforms_in_order():
    double = matrix_to_transform(np.diag([2.0, 2, 2, 1]), 3)
    shift = np.eye(4)
    shift[:3, 3] = 1, 0, 0  # RAS, so -1 in LPS
    composite = compose_transforms([double, matrix_to_transform(shift, 3)])
    assert composite.TransformPoint([1.0, 1, 1]) == (1, 2, 2)


def test_a_field_without_itks_intent_is_refused(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 1, 3), np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "warp.nii.gz")
    with pytest.raises(UserError, match="intent code 0"):
        read_transform(tmp_path / "warp.nii.gz")
    image.header.set_intent(1007)
    nibabel.save(image, tmp_path / "warp.nii.gz")
    assert read_transform(tmp_path / "warp.nii.gz").TransformPoint([1.0, 2, 3]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.h5", None, "missing"),
        ("broken.h5", b"\0" * 900, "cannot be read"),
        ("words.mat", b"hello world", "matrix"),
        ("flirt.mat", b"1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "both images"),
        ("broken.npz", b"PK\3\4 no", "cannot be read"),
        ("broken.nii.gz", b"\x1f\x8b no", "cannot be read"),
        ("text.tfm", b"hello", "cannot be read"),
    ],
)
def test_files_that_are_not_transforms_are_refused(tmp_path, name, content, message):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_transform(tmp_path / name)


def test_an_image_is_not_a_displacement_field(tmp_path):
    sitk.WriteImage(make_deformation(3).fixed.to_sitk(), str(tmp_path / "a.mha"))
    with pytest.raises(UserError, match="not a displacement field"):
        read_transform(tmp_path / "a.mha")


def test_learn2reg_of_another_shape_is_refused(tmp_path):
    deformation = make_deformation(3)
    np.savez(tmp_path / "disp.npz", np.zeros((3, 4, 5, 3)))
    with pytest.raises(UserError, match=r"\(3, 4, 5, 3\)"):
        read_transform(tmp_path / "disp.npz", deformation.fixed, deformation.moving)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="afni"):
        write_transforms(tmp_path, make_deformation(3), ["afni"])


@pytest.mark.parametrize("fmt", ["field", "ants"])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_formats_that_cannot_hold_sheared_axes_are_refused(tmp_path, fmt, side):
    deformation = make_deformation(3)
    grid = getattr(deformation, side)
    for amount, is_refused in ((0.3, True), (0.01, True), (1e-4, False)):
        affine = grid.affine.copy()
        affine[:3, 1] += amount * affine[:3, 0]
        sheared = replace(deformation, **{side: replace(grid, affine=affine)})
        if is_refused:
            with pytest.raises(UserError, match=f"'{fmt}' cannot describe the {side} image"):
                write_transforms(tmp_path, sheared, [fmt])
            assert not list(tmp_path.iterdir())
        else:
            write_transforms(tmp_path, sheared, [fmt])


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_images_with_sheared_axes_are_written_to_their_place(tmp_path, name):
    grid = make_deformation(3).fixed
    affine = grid.affine @ (np.eye(4) + 0.3 * np.eye(4, k=1) * [1, 1, 0, 0])
    write_image(tmp_path / name, make_image(grid), affine)
    np.testing.assert_allclose(decode_image(tmp_path / name).affine, affine, atol=1e-4)
    if name == "a.nii.gz":  # read by programs that can, refused by ITK
        np.testing.assert_allclose(nibabel.load(tmp_path / name).affine, affine, atol=1e-4)
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(tmp_path / name))
    else:
        image = sitk.ReadImage(str(tmp_path / name))
        corner = (affine @ [3, 5, 7, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 5, 7)), corner)


def resample_with_ants(tmp_path, image, source, target, files, inverted):
    """Resample an image with antspyx."""
    ants = pytest.importorskip("ants", reason="antspyx comes with the extra 'baselines'")
    sitk.WriteImage(coordinates.array_to_sitk(image, source.affine), str(tmp_path / "image.nii.gz"))
    sitk.WriteImage(target.to_sitk(), str(tmp_path / "onto.nii.gz"))
    return ants.apply_transforms(
        ants.image_read(str(tmp_path / "onto.nii.gz")),
        ants.image_read(str(tmp_path / "image.nii.gz")),
        [str(tmp_path / name) for name in files],
        interpolator="linear",
        whichtoinvert=inverted,
    ).numpy()


@NDIMS
@pytest.mark.parametrize("fmt", ["ants", "itk", "field"])
def test_ants_warps_equally(tmp_path, fmt, ndim):
    deformation = make_deformation(ndim)
    write_transforms(tmp_path, deformation, [fmt])
    image = make_image(deformation.moving)
    names = {
        "ants": ["1Warp.nii.gz", "0GenericAffine.mat"],
        "itk": ["Composite.h5"],
        "field": ["displacement.nii.gz"],
    }[fmt]
    resampled = resample_with_ants(
        tmp_path, image, deformation.moving, deformation.fixed, names, [False] * len(names)
    )
    expected = warp_directly(image, deformation)[0]
    indices = compute_moving_indices(deformation)
    last = np.reshape(deformation.moving.shape, (-1, *[1] * ndim)) - 1
    well_inside = ((indices > 0) & (indices < last)).all(0)
    assert well_inside.mean() > 0.2
    assert np.abs(expected - resampled)[well_inside].max() < 1e-3 * np.ptp(image)


@NDIMS
def test_ants_warps_backward_equally(tmp_path, ndim):
    deformation = make_deformation(ndim)
    write_transforms(tmp_path, deformation, ["ants"])
    image = make_image(deformation.fixed)
    names = ["0GenericAffine.mat", "1InverseWarp.nii.gz"]
    resampled = resample_with_ants(
        tmp_path, image, deformation.fixed, deformation.moving, names, [True, False]
    )
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            coordinates.array_to_sitk(image, deformation.fixed.affine),
            deformation.moving.to_sitk(),
            deformation.backward,
            sitk.sitkLinear,
            0.0,
            sitk.sitkFloat32,
        )
    ).T
    inside = (resampled != 0) & (expected != 0)
    assert inside.mean() > 0.02
    assert np.abs(expected - resampled)[inside].max() < 1e-3 * np.ptp(image)
