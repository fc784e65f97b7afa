"""Files of a pair are read right before they are registered, and labels are written right."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from regnet_lab.errors import UserError
from regnet_lab.registration.api import build_pipeline
from regnet_lab.registration.jobs import (
    SETTINGS_FILE,
    RegistrationJob,
    build_job,
    register_and_save,
    require_no_other_registration,
)
from regnet_lab.registration.mapping import warp_array
from regnet_lab.registration.quality import measure_overlap
from regnet_lab.spatial import Deformation
from regnet_lab.spatial.image_grid import ImageGrid
from regnet_lab.spatial.writers import write_image
from tests.helpers.nifti import SHAPE as NIFTI_SHAPE
from tests.helpers.nifti import write_nifti
from tests.helpers.registration import QUICK_OPTIONS, render_texture, save_nifti

SHAPE = (12, 10, 8)
AFFINE = np.diag([1.0, 2.0, 1.5, 1.0])
IDS = np.array([0, 997, 16777217, 614454277, 2**31 - 1])


def make_identity(shape=SHAPE, affine=AFFINE):
    grid = ImageGrid(shape, affine)
    return Deformation(grid, grid, np.eye(4), np.zeros((len(shape), *shape), np.float32))


def make_labels():
    return IDS[np.random.default_rng(0).integers(0, len(IDS), SHAPE)]


@pytest.fixture
def read(composed, tmp_path):
    """Return a function that reads the two cases of a pair with other files than its images."""
    image = render_texture(ImageGrid(SHAPE, AFFINE))
    files = {side: save_nifti(tmp_path / f"{side}.nii.gz", image, AFFINE)
             for side in ("fixed", "moving")}  # fmt: skip

    def make(**others):
        quoted = [f"{key}={value}" for key, value in {**files, **others}.items()]
        return build_job(composed("register", *quoted)).read()[:2]

    return make


def test_labels_stored_with_other_axes_have_a_dice_of_one(read, tmp_path):
    labels = nibabel.Nifti1Image(make_labels().astype(np.int32), AFFINE)
    turned = labels.as_reoriented([[2, -1], [0, 1], [1, -1]])
    nibabel.save(labels, tmp_path / "fixed_l.nii.gz")
    nibabel.save(turned, tmp_path / "moving_l.nii.gz")
    named = {f"{side}_labels": tmp_path / f"{side}_l.nii.gz" for side in ("fixed", "moving")}
    fixed, moving = read(**named)
    report = measure_overlap(make_identity(), fixed, moving)["dice"]["headers"]
    assert report == {"mean": 1.0} | {int(label): 1.0 for label in IDS[1:]}


def test_array_order_is_trusted_if_the_key_is_set(read, tmp_path):
    labels, elsewhere = make_labels().astype(np.int32), AFFINE.copy()
    elsewhere[0, 3] = 5
    path = save_nifti(tmp_path / "labels.nii.gz", labels, elsewhere)
    with pytest.raises(UserError, match=r"labels\.nii\.gz: .* trust_array_order=true"):
        read(fixed_labels=path)
    fixed, _ = read(fixed_labels=path, fixed_mask=path, trust_array_order="true")
    np.testing.assert_array_equal(fixed.labels, labels)
    np.testing.assert_array_equal(fixed.mask, labels > 0)


@pytest.mark.parametrize(("counts", "refused"), [((5, 5), False), ((5, 1), True), ((1, 5), True)])
def test_numbers_of_landmarks_that_differ_are_refused(read, tmp_path, counts, refused):
    for side, count in zip(("fixed", "moving"), counts, strict=True):
        points = np.random.default_rng(0).uniform(0, 7, (count, 3))
        np.savetxt(tmp_path / f"{side}.csv", points, delimiter=",")
    named = {f"{side}_points": tmp_path / f"{side}.csv" for side in ("fixed", "moving")}
    if refused:
        with pytest.raises(UserError, match=rf"fixed\.csv has {counts[0]} .* has {counts[1]}"):
            read(**named)
    else:
        assert [len(case.points) for case in read(**named)] == [5, 5]


@pytest.mark.parametrize(("phase", "frame"), [("1", 1), ("1.0", 1), ("'1,0'", 1), ("1.5", None)])
def test_a_phase_may_be_written_with_a_decimal_point(read, tmp_path, phase, frame):
    cine = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
    path = save_nifti(tmp_path / "cine.nii.gz", cine, AFFINE)
    if frame is None:
        with pytest.raises(UserError, match=r"fixed_phase: '1\.5' must be a whole number"):
            read(fixed=path, fixed_phase=phase)
    else:
        fixed, _ = read(fixed=path, fixed_phase=phase)
        np.testing.assert_array_equal(fixed.image, cine[..., frame])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_warped_labels_are_written_with_the_ids_of_the_file(read, tmp_path, suffix, dtype):
    labels = make_labels() if np.dtype(dtype).itemsize > 2 else make_labels() % 251
    image = nibabel.Nifti1Image(labels.astype(dtype), AFFINE, dtype=dtype)
    nibabel.save(image, tmp_path / "labels.nii.gz")
    _, moving = read(moving_labels=tmp_path / "labels.nii.gz")
    deformation = make_identity()
    deformation.u[0] = 2  # voxels
    warped = warp_array(moving.labels, deformation, linear=False)
    write_image(tmp_path / f"warped{suffix}", warped, AFFINE)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"warped{suffix}"))).T
    assert written.dtype.kind == "i"
    np.testing.assert_array_equal(written[:-2], labels[2:])
    assert not written[-2:].any()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_boolean_image_keeps_its_half_level(ndim):
    shape = (9, 8, 7)[:ndim]
    deformation = make_identity(shape, np.eye(4))
    shift = np.zeros((ndim, *shape), np.float32)
    shift[0] = 0.25
    image = np.zeros(shape, bool)
    image[3:6] = True
    moved = Deformation(deformation.fixed, deformation.moving, np.eye(4), shift)
    warped = warp_array(image, moved)
    assert warped.dtype == bool
    np.testing.assert_array_equal(warped, image)  # not dilated by the voxels that are a quarter in


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_grids_keep_the_headers_of_nifti_files(tmp_path, side):
    array, affine = np.random.default_rng(0).normal(size=NIFTI_SHAPE), np.diag([50.0, 50, 60, 1])
    write_nifti(tmp_path / "a.nii.gz", array, affine, affine, 0, 1, unit=3)
    nibabel.save(nibabel.MGHImage(array.astype(np.float32), affine), tmp_path / "b.mgz")
    other = "moving" if side == "fixed" else "fixed"
    job = RegistrationJob({side: "a.nii.gz", other: "b.mgz"}, tmp_path, "voxel", {})
    cases = dict(zip(("fixed", "moving"), job.read()[:2], strict=True))
    grid = job.build_grid(side, cases[side])
    np.testing.assert_allclose(grid.affine, np.diag([0.05, 0.05, 0.06, 1]), rtol=1e-6)
    np.testing.assert_allclose(grid.header["pixdim"][1:4], [50, 50, 60])
    assert int(grid.header["sform_code"]) == 0
    assert job.build_grid(other, cases[other]).header is None


def test_another_registration_is_not_replaced_without_overwrite(tmp_path):
    settings = {"align": {"name": "rigid"}, "fixed": "a.nii"}
    require_no_other_registration(tmp_path, settings, overwrite=False)
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    require_no_other_registration(tmp_path, settings, overwrite=False)  # the same one
    other = settings | {"fixed": "b.nii"}
    with pytest.raises(UserError, match=r"another registration \(fixed: b.nii, not a.nii\)"):
        require_no_other_registration(tmp_path, other, overwrite=False)
    require_no_other_registration(tmp_path, other, overwrite=True)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_of_any_orientation_stays_on_itself(composed, tmp_path, axis):
    image = render_texture(ImageGrid((24, 20), np.eye(4)))
    affine = np.eye(4)[:, [*np.roll(range(3), axis).tolist(), 3]]
    path = save_nifti(tmp_path / "slice.nii.gz", image[..., None], affine)
    cfg = composed("register", f"fixed={path}", f"moving={path}", *QUICK_OPTIONS[:2], "device=cpu")
    pipeline = build_pipeline(cfg, ["optimizer"])
    report = register_and_save(pipeline, build_job(cfg), tmp_path / "out", cfg)
    assert report["similarity"]["registered"]["ncc"] == pytest.approx(1)
    warped = nibabel.load(tmp_path / "out" / "warped.nii.gz")
    np.testing.assert_allclose(warped.affine[:3, 3], affine[:3, 3], atol=1e-5)
    array = np.asarray(warped.dataobj).reshape(image.shape)
    np.testing.assert_allclose(array, image, atol=1e-3 * np.ptp(image))
