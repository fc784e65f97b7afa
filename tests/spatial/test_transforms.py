"""Transforms out and in, against SimpleITK, scipy and, where it is installed, ANTs."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from regnet_lab import ops
from regnet_lab.errors import UserError
from regnet_lab.spatial import Deformation, chain, coordinates, read_transform, write_transforms
from regnet_lab.spatial.image_grid import Frame, matrix_of, matrix_transform
from tests.helpers.geometry import affine_matrix

NDIMS = pytest.mark.parametrize("ndim", [2, 3])


def frames(ndim):
    """An oblique fixed grid and another moving one, both anisotropic."""
    tilt = (10, -25, 40) if ndim == 3 else (0, 0, 40)
    turn = (-20, 5, -15) if ndim == 3 else (0, 0, -15)
    deep = ndim == 3
    fixed = affine_matrix(tilt, (1.5, 0.7, 2.5), (-30, 12, 50 * deep))
    moving = affine_matrix(turn, (0.9, 1.3, 1.7), (-38, 3, 45 * deep))
    return Frame((20, 27, 11)[:ndim], fixed), Frame((40, 25, 30)[:ndim], moving)


def deformation(ndim):
    """A smooth displacement of some voxels, and an affine map."""
    rng = np.random.default_rng(ndim)
    fixed, moving = frames(ndim)
    u = np.stack([gaussian_filter(rng.normal(size=fixed.shape), 4) for _ in range(ndim)])
    u *= 1.5 / np.abs(u).max()
    matrix = affine_matrix((0, 0, 8), (1.1, 0.95, 1), (2, -3, 0))
    return Deformation(fixed, moving, matrix, u.astype(np.float32))


def image_on(frame):
    """A smooth image, so that interpolation of coordinates in float32 does not show."""
    array = gaussian_filter(np.random.default_rng(0).normal(size=frame.shape), 1.5)
    return (100 * array / np.abs(array).max()).astype(np.float32)


def indices_in_moving(found):
    """(D, *spatial) indices of the moving image that fixed voxels map to, step by step."""
    at = np.indices(found.fixed.shape) + found.u
    points = at.reshape(len(at), -1).T
    there = coordinates.voxel_to_world(found.fixed.affine, points)
    there = coordinates.transform(found.matrix, there)[:, : len(at)]
    return coordinates.world_to_voxel(found.moving.affine, there).T.reshape(at.shape)


def warped_by_us(image, found):
    points = torch.from_numpy(indices_in_moving(found)).float()[None]
    warped = ops.sample(torch.from_numpy(image)[None, None], points)[0, 0].numpy()
    last = np.reshape(found.moving.shape, (-1, *[1] * image.ndim)) - 0.5
    known = ((points[0].numpy() > -0.5) & (points[0].numpy() < last)).all(0)
    return np.where(known, warped, 0), known


def warped_by_itk(image, found, transform):
    moving = coordinates.to_image(image, found.moving.affine)
    return sitk.GetArrayFromImage(
        sitk.Resample(moving, found.fixed.empty(), transform, sitk.sitkLinear, 0.0)
    ).T


@NDIMS
@pytest.mark.parametrize(
    ("fmt", "files"),
    [
        ("itk", ["Composite.h5"]),
        ("field", ["displacement.nii.gz"]),
        ("ants", ["1Warp.nii.gz", "0GenericAffine.mat"]),
        ("fsl", ["fsl_warp.nii.gz"]),
        ("l2r", ["l2r_displacement.npz"]),
        ("l2r", ["l2r_displacement.nii.gz"]),
    ],
)
def test_simpleitk_resamples_through_every_format_as_we_do(tmp_path, ndim, fmt, files):
    found = deformation(ndim)
    if (ndim, fmt) == (2, "fsl"):
        with pytest.raises(UserError, match="3D"):
            write_transforms(tmp_path, found, [fmt])
        return
    write_transforms(tmp_path, found, [fmt])
    image = image_on(found.moving)
    ours, known = warped_by_us(image, found)
    read = chain([read_transform(tmp_path / f, found.fixed, found.moving) for f in files])
    assert known.mean() > 0.3
    theirs = warped_by_itk(image, found, read)
    inner = indices_in_moving(found)
    faces = np.abs(inner + 0.5 - np.clip(np.rint(inner + 0.5), 0, 99)).min(0) < 1e-3
    assert np.abs(ours - theirs)[~faces].max() < 1e-3 * np.ptp(image)


def test_simpleitk_itself_reads_the_itk_files(tmp_path):
    found = deformation(3)
    write_transforms(tmp_path, found, ["itk", "field"])
    image = image_on(found.moving)
    field = sitk.ReadImage(str(tmp_path / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    by_field = warped_by_itk(image, found, sitk.DisplacementFieldTransform(field))
    composite = sitk.ReadTransform(str(tmp_path / "Composite.h5"))
    by_composite = warped_by_itk(image, found, composite)
    assert np.abs(by_field - by_composite).max() < 1e-3 * np.ptp(image)
    header = nibabel.load(tmp_path / "displacement.nii.gz").header
    assert header["dim"][:6].tolist() == [5, *found.fixed.shape, 1, 3]
    assert int(header["intent_code"]) == 1007


@NDIMS
def test_landmarks_land_where_ours_do(tmp_path, ndim):
    found = deformation(ndim)
    write_transforms(tmp_path, found, ["itk"])
    read = read_transform(tmp_path / "Composite.h5")
    index = np.random.default_rng(1).uniform(1, 9, (20, ndim))
    u = np.stack([map_coordinates(c, index.T, order=1) for c in found.u], 1)
    ours = coordinates.voxel_to_world(found.fixed.affine, index + u)
    ours = coordinates.flip_points(coordinates.transform(found.matrix, ours)[:, :ndim])
    fixed = coordinates.flip_points(coordinates.voxel_to_world(found.fixed.affine, index)[:, :ndim])
    theirs = [read.TransformPoint(point) for point in fixed.tolist()]
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


@NDIMS
def test_the_way_back_returns_points_to_the_stated_residual(tmp_path, ndim):
    found = deformation(ndim)
    write_transforms(tmp_path, found, ["itk"])
    there = read_transform(tmp_path / "Composite.h5")
    back = read_transform(tmp_path / "InverseComposite.h5")
    stated = found.residual
    assert np.isfinite(stated).mean() > 0.5
    assert np.nanmax(stated) < 0.2
    for index in np.argwhere(np.isfinite(stated))[::37]:
        point = coordinates.flip_points(
            coordinates.voxel_to_world(found.fixed.affine, index[None])[:, :ndim]
        )
        returned = back.TransformPoint(there.TransformPoint(point[0].tolist()))
        missed = np.linalg.norm(np.array(returned) - point[0])
        assert missed == pytest.approx(stated[tuple(index)], abs=1e-3)


def test_a_residual_is_seen_where_the_map_folds():
    found = deformation(3)
    folded = Deformation(found.fixed, found.moving, found.matrix, found.u * 12)
    assert np.nanmax(folded.residual) > 0.5


def fsl_coordinates(frame, index):
    """applywarp's millimetres, written out for every point."""
    index = np.array(index, float)
    if np.linalg.det(frame.affine[:3, :3]) > 0:
        index[:, 0] = frame.shape[0] - 1 - index[:, 0]
    return index * np.linalg.norm(frame.affine[:3, :3], axis=0)


@pytest.mark.parametrize("flipped", [False, True])
def test_fsl_finds_moving_voxels_by_its_own_rules(tmp_path, flipped):
    found = deformation(3)
    if flipped:  # a moving image whose header is left-handed
        mirror = np.diag([-1.0, 1, 1, 1])
        mirror[0, 3] = found.moving.shape[0] - 1
        moving = Frame(found.moving.shape, found.moving.affine @ mirror)
        found = Deformation(found.fixed, moving, found.matrix, found.u)
    write_transforms(tmp_path, found, ["fsl"])
    warp = nibabel.load(tmp_path / "fsl_warp.nii.gz")
    assert int(warp.header["intent_code"]) == 2006
    x = np.argwhere(np.ones(found.fixed.shape))
    there = fsl_coordinates(found.fixed, x) + warp.get_fdata().reshape(-1, 3)
    ours = indices_in_moving(found).reshape(3, -1).T
    np.testing.assert_allclose(there, fsl_coordinates(found.moving, ours), atol=1e-3)
    flirt = np.loadtxt(tmp_path / "fsl_affine.mat")
    some = np.random.default_rng(0).uniform(0, 9, (5, 3))
    back = fsl_coordinates(found.moving, some) @ flirt[:3, :3].T + flirt[:3, 3]
    home = coordinates.transform(
        np.linalg.inv(found.matrix), coordinates.voxel_to_world(found.moving.affine, some)
    )
    home = coordinates.world_to_voxel(found.fixed.affine, home)
    np.testing.assert_allclose(back, fsl_coordinates(found.fixed, home), atol=1e-3)


@NDIMS
def test_the_affine_part_survives_every_file(tmp_path, ndim):
    found = deformation(ndim)
    formats = {"itk": "affine.tfm", "ants": "0GenericAffine.mat", "fsl": "fsl_affine.mat"}
    kept = coordinates.in_plane(found.matrix, ndim)
    for fmt, name in [*formats.items()][:ndim]:
        write_transforms(tmp_path, found, [fmt])
        read = matrix_of(read_transform(tmp_path / name, found.fixed, found.moving))
        np.testing.assert_allclose(coordinates.in_plane(read, ndim), kept, atol=1e-4)


def test_learn2reg_between_images_of_one_grid_is_the_displacement(tmp_path):
    found = deformation(3)
    same = Deformation(found.fixed, found.fixed, np.eye(4), found.u)
    write_transforms(tmp_path, same, ["l2r"])
    u = np.load(tmp_path / "l2r_displacement.npz")["arr_0"]
    np.testing.assert_allclose(np.moveaxis(u, -1, 0), found.u, atol=1e-4)
    nifti = nibabel.load(tmp_path / "l2r_displacement.nii.gz").get_fdata()
    np.testing.assert_array_equal(nifti, u)


@pytest.mark.parametrize("fmt", ["field", "fsl", "l2r"])
def test_the_inverse_files_lie_on_the_moving_grid_and_lead_back(tmp_path, fmt):
    found = deformation(3)
    write_transforms(tmp_path, found, [fmt])
    name = {
        "field": "inverse_displacement.nii.gz",
        "fsl": "fsl_inverse_warp.nii.gz",
        "l2r": "l2r_inverse_displacement.npz",
    }[fmt]
    back = read_transform(tmp_path / name, found.moving, found.fixed)
    centre = np.array([[10.0, 13, 5]])
    start = coordinates.flip_points(coordinates.voxel_to_world(found.fixed.affine, centre))[
        0
    ].tolist()
    there = found.forward.TransformPoint(start)
    np.testing.assert_allclose(back.TransformPoint(there), start, atol=0.1)


def test_points_go_through_a_chain_in_the_order_given():
    double = matrix_transform(np.diag([2.0, 2, 2, 1]), 3)
    shift = np.eye(4)
    shift[:3, 3] = 1, 0, 0  # RAS, so -1 in LPS
    composite = chain([double, matrix_transform(shift, 3)])
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
    ("name", "content", "named"),
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
def test_a_file_that_is_no_transform_is_one_sentence(tmp_path, name, content, named):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=named):
        read_transform(tmp_path / name)


def test_an_image_is_no_field(tmp_path):
    sitk.WriteImage(deformation(3).fixed.empty(), str(tmp_path / "a.mha"))
    with pytest.raises(UserError, match="no field"):
        read_transform(tmp_path / "a.mha")


def test_learn2reg_of_another_shape_is_refused(tmp_path):
    found = deformation(3)
    np.savez(tmp_path / "disp.npz", np.zeros((3, 4, 5, 3)))
    with pytest.raises(UserError, match=r"\(3, 4, 5, 3\)"):
        read_transform(tmp_path / "disp.npz", found.fixed, found.moving)


def test_an_unknown_format_is_named(tmp_path):
    with pytest.raises(UserError, match="afni"):
        write_transforms(tmp_path, deformation(3), ["afni"])


def resampled_by_ants(tmp_path, image, source, target, files, inverted):
    """What antspyx makes of an image of a frame on another one."""
    ants = pytest.importorskip("ants", reason="antspyx comes with the extra 'baselines'")
    sitk.WriteImage(coordinates.to_image(image, source.affine), str(tmp_path / "image.nii.gz"))
    sitk.WriteImage(target.empty(), str(tmp_path / "onto.nii.gz"))
    return ants.apply_transforms(
        ants.image_read(str(tmp_path / "onto.nii.gz")),
        ants.image_read(str(tmp_path / "image.nii.gz")),
        [str(tmp_path / name) for name in files],
        interpolator="linear",
        whichtoinvert=inverted,
    ).numpy()


@NDIMS
@pytest.mark.parametrize("fmt", ["ants", "itk", "field"])
def test_ants_warps_as_we_do(tmp_path, fmt, ndim):
    found = deformation(ndim)
    write_transforms(tmp_path, found, [fmt])
    image = image_on(found.moving)
    names = {
        "ants": ["1Warp.nii.gz", "0GenericAffine.mat"],
        "itk": ["Composite.h5"],
        "field": ["displacement.nii.gz"],
    }[fmt]
    theirs = resampled_by_ants(
        tmp_path, image, found.moving, found.fixed, names, [False] * len(names)
    )
    ours = warped_by_us(image, found)[0]
    inner = indices_in_moving(found)
    last = np.reshape(found.moving.shape, (-1, *[1] * ndim)) - 1
    well_inside = ((inner > 0) & (inner < last)).all(0)
    assert well_inside.mean() > 0.2
    assert np.abs(ours - theirs)[well_inside].max() < 1e-3 * np.ptp(image)


@NDIMS
def test_ants_goes_back_as_we_do(tmp_path, ndim):
    found = deformation(ndim)
    write_transforms(tmp_path, found, ["ants"])
    image = image_on(found.fixed)
    names = ["0GenericAffine.mat", "1InverseWarp.nii.gz"]
    theirs = resampled_by_ants(tmp_path, image, found.fixed, found.moving, names, [True, False])
    ours = sitk.GetArrayFromImage(
        sitk.Resample(
            coordinates.to_image(image, found.fixed.affine),
            found.moving.empty(),
            found.backward,
            sitk.sitkLinear,
            0.0,
            sitk.sitkFloat32,
        )
    ).T
    known = (theirs != 0) & (ours != 0)
    assert known.mean() > 0.02
    assert np.abs(ours - theirs)[known].max() < 1e-3 * np.ptp(image)
