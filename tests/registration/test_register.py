"""register.py and its parts: any two images in, the answer in the world they came from."""

import json
import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from omegaconf import OmegaConf
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

import regnet_lab
from regnet_lab.cli import register
from regnet_lab.config.instantiate import build
from regnet_lab.data.io.cases import Scan
from regnet_lab.errors import UserError
from regnet_lab.losses import Diffusion, Similarity
from regnet_lab.models import Identity, VoxelMorph
from regnet_lab.ops.similarity import mean_squares
from regnet_lab.registration import instance_optimization
from regnet_lab.registration.api import remembered
from regnet_lab.registration.inference_grid import ModelGrid
from regnet_lab.registration.output import delivered, write_image
from regnet_lab.registration.pipeline import (
    Registrar,
    carried,
    points_in_fixed,
    points_in_moving,
    warped,
)
from regnet_lab.spatial import Deformation, coordinates, linear_alignment, write_transforms
from regnet_lab.spatial.image_grid import Frame
from regnet_lab.types import Pair
from tests.helpers.dicom import write_dicom
from tests.helpers.geometry import affine_matrix
from tests.helpers.geometry import rotate_with_padding as padded

QUICK = ["refine.steps=[8,8]", "refine.largest=4000", "align.iterations=20", "threads=1"]


def blob(frame, seed=0, sigma=2.0, move=None):
    """A smooth image that is a function of place in the world, seen on a frame.

    ``move`` (4, 4), RAS+, is applied to places first.
    """
    rng = np.random.default_rng(seed)
    ndim = frame.ndim
    texture = gaussian_filter(rng.normal(size=(48,) * ndim), sigma, mode="constant")
    places = coordinates.voxel_to_world(frame.affine, np.indices(frame.shape).reshape(ndim, -1).T)
    places = coordinates.transform(np.eye(4) if move is None else move, places)[:, :ndim]
    values = map_coordinates(texture, places.T + 24, order=1)
    return (1000 * values / np.abs(texture).max()).reshape(frame.shape).astype(np.float32)


def frames(ndim):
    """Two frames about the world's origin, of unlike size, spacing and orientation."""
    deep = ndim == 3

    def centred(shape, degrees, spacing):
        affine = affine_matrix(degrees if deep else (0, 0, degrees[2]), spacing, (0, 0, 0))
        middle = np.append((np.array(shape) - 1) / 2, [0] * (3 - ndim))
        affine[:3, 3] = -affine[:3, :3] @ middle
        return Frame(shape, affine)

    fixed = centred((20, 17, 18)[:ndim], (0, 0, 0), (1.5, 1.7, 1.6))
    return fixed, centred((26, 33, 24)[:ndim], (5, -10, 15), (1.2, 1.0, 1.4))


def scans(ndim, move=None):
    fixed, moving = frames(ndim)
    return (
        Scan(blob(fixed), fixed.affine),
        Scan(blob(moving, move=move), moving.affine),
    )


def save(path, array, affine):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two images that fit by the world, as int16, with labels and landmarks."""
    fixed, moving = frames(3)
    made = {}
    for side, frame in (("fixed", fixed), ("moving", moving)):
        image = blob(frame)
        made[side] = save(tmp_path / f"{side}.nii.gz", image.astype(np.int16), frame.affine)
        labels = (image > 100).astype(np.uint8)
        made[f"{side}_labels"] = save(tmp_path / f"{side}_l.nii.gz", labels, frame.affine)
        ras = np.random.default_rng(0).uniform(-8, 8, (6, 3))
        pd.DataFrame(ras).to_csv(tmp_path / f"{side}.csv", index=False, header=False)
        made[f"{side}_points"] = str(tmp_path / f"{side}.csv")
    return made


def given(files):
    return [f"{key}={value}" for key, value in files.items()]


def one_sentence(done, *named):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for text in named:
        assert text in lines[0], lines[0]


def test_a_pair_is_registered_from_files_to_files(files, command, tmp_path):
    done = command(
        "register.py",
        *given(files),
        "points_space=ras",
        "formats=[itk,field,ants,fsl,l2r]",
        "folder=out",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    assert "registered" not in os.listdir(tmp_path)
    out = tmp_path / "out"
    assert not list(tmp_path.glob("**/*.part"))
    assert {path.name for path in out.iterdir()} == {
        "warped.nii.gz",
        "warped_labels.nii.gz",
        "fixed_points_in_moving.csv",
        "moving_points_in_fixed.csv",
        "Composite.h5",
        "InverseComposite.h5",
        "affine.tfm",
        "displacement.nii.gz",
        "inverse_displacement.nii.gz",
        "1Warp.nii.gz",
        "1InverseWarp.nii.gz",
        "0GenericAffine.mat",
        "fsl_warp.nii.gz",
        "fsl_inverse_warp.nii.gz",
        "fsl_affine.mat",
        "l2r_displacement.npz",
        "l2r_displacement.nii.gz",
        "l2r_inverse_displacement.npz",
        "l2r_inverse_displacement.nii.gz",
        "quality.json",
        "quality.png",
    }
    fixed = nibabel.load(files["fixed"])
    image = nibabel.load(out / "warped.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    inner = (slice(4, -4),) * 3
    assert np.corrcoef(image.get_fdata()[inner].ravel(), fixed.get_fdata()[inner].ravel())[0, 1] > (
        0.97
    )
    sheet = json.loads((out / "quality.json").read_text(encoding="utf-8"))
    assert sheet["dice"]["registered"]["mean"] > 0.8
    assert sheet["tre_mm"]["registered"]["mean"] < 1.5
    assert sheet["folds_percent"] == 0
    there = pd.read_csv(out / "fixed_points_in_moving.csv").to_numpy()
    known = pd.read_csv(files["moving_points"], header=None).to_numpy()
    missed = np.linalg.norm(there - known, axis=1)
    np.testing.assert_allclose(missed, sheet["tre_mm"]["registered"]["each"], atol=1e-3)

    transform = sitk.ReadTransform(str(out / "Composite.h5"))
    moving = sitk.ReadImage(files["moving"], sitk.sitkFloat32)
    theirs = sitk.Resample(
        moving, sitk.ReadImage(files["fixed"]), transform, sitk.sitkLinear, image.get_fdata().min()
    )
    difference = np.abs(sitk.GetArrayFromImage(theirs).T - image.get_fdata())[inner]
    assert difference.max() <= 0.5 + 1e-3 * np.ptp(image.get_fdata())  # it was rounded

    again = command(
        "register.py",
        "apply=out/Composite.h5",
        f"image={files['moving']}",
        f"fixed={files['fixed']}",
        "folder=again",
    )
    assert again.returncode == 0, again.stderr
    applied = nibabel.load(tmp_path / "again" / "warped.nii.gz")
    assert applied.get_data_dtype() == np.int16
    assert np.abs(applied.get_fdata() - image.get_fdata())[inner].max() <= 1
    home = command(
        "register.py",
        "apply=[out/InverseComposite.h5,out/Composite.h5]",
        f"image={files['moving_labels']}",
        "interpolation=nearest",
        "folder=home",
    )
    assert home.returncode == 0, home.stderr
    assert (tmp_path / "home" / "Composite.h5").exists()


def test_a_list_goes_on_after_a_pair_that_fails_and_says_which(files, command, tmp_path):
    rows = [
        {"fixed": "fixed.nii.gz", "moving": "nowhere.nii.gz", "name": "bad"},
        {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz", "name": "good"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "list.csv", index=False)
    done = command("register.py", "pairs=list.csv", "folder=out", *QUICK)
    one_sentence(done, "1 of 2", "bad")
    assert "nowhere.nii.gz" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"good", "pairs.csv"}
    table = pd.read_csv(tmp_path / "out" / "pairs.csv").set_index("name")
    assert "nowhere.nii.gz" in table.error["bad"]
    assert table.ncc_registered["good"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["fixed="]),
        (["fixed=a.nii.gz"], ["moving="]),
        (["fixed=nowhere.nii", "moving=good.nii"], ["nowhere.nii", "missing"]),
        (["fixed=good.nii", "moving=words.nii"], ["words.nii"]),
        (["fixed=good.nii", "moving=nan.nii"], ["nan.nii", "NaN"]),
        (["fixed=good.nii", "moving=constant.nii"], ["moving image", "everywhere"]),
        (["fixed=good.nii", "moving=four.nii"], ["four.nii", "phase"]),
        (["fixed=good.nii", "moving=plane.nii"], ["2D", "3D"]),
        (["fixed=good.nii", "moving=far.nii"], ["no place", "align.start"]),
        (["fixed=good.nii", "moving=gap"], ["gap", "missing"]),
        (["fixed=good.nii", "moving=good.nii", "folder=words.nii/out"], ["words.nii/out"]),
        (["fixed=good.nii", "moving=good.nii", "formats=[afni]"], ["afni"]),
        (["fixed=good.nii", "moving=good.nii", "run=nowhere"], ["nowhere"]),
        (["fixed=good.nii", "moving=good.nii", "model=identity", "refine=network"], ["run="]),
        (["apply=words.nii", "image=good.nii"], ["words.nii"]),
        (["apply=words.nii"], ["image="]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    arguments, named, composed, tmp_path, monkeypatch
):
    frame = frames(3)[0]
    image = blob(frame)
    monkeypatch.chdir(tmp_path)
    far = frame.affine.copy()
    far[:3, 3] += 1000
    broken = image.copy()
    broken[3, 4, 5] = np.nan
    (tmp_path / "words.nii").write_text("no image", encoding="utf-8")
    made = {
        "good": (image, frame.affine),
        "nan": (broken, frame.affine),
        "constant": (np.ones_like(image), frame.affine),
        "four": (np.stack([image] * 2, -1), frame.affine),
        "plane": (image[:, :, 3], frame.affine),
        "far": (image, far),
    }
    for name, (array, affine) in made.items():
        save(tmp_path / f"{name}.nii", array, affine)
    write_dicom(tmp_path / "gap", skip=(2,))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        register.serve(composed("register", *arguments))
    for text in named:
        assert text in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_affine_of_two_images_is_found(ndim):
    known = affine_matrix((0, 0, 12), (1.05, 0.97, 1), (2, -3, 0))
    fixed, moving = frames(ndim)
    images = (blob(fixed, sigma=3), blob(moving, sigma=3, move=np.linalg.inv(known)))
    sides = linear_alignment.Sides(
        *(coordinates.to_image(i, f.affine) for i, f in zip(images, (fixed, moving), strict=True))
    )
    found = linear_alignment.Linear(factors=(2, 1))(sides)
    places = np.random.default_rng(0).uniform(-8, 8, (20, ndim))
    places = np.pad(places, ((0, 0), (0, 3 - ndim)))
    missed = coordinates.transform(found, places) - coordinates.transform(known, places)
    assert np.linalg.norm(missed, axis=1).max() < 1.0


def test_a_rigid_alignment_keeps_distances():
    fixed, moving = scans(3, affine_matrix((0, 5, 10), (1.1, 1, 1), (1, 1, 0)))
    sides = linear_alignment.Sides(
        *(coordinates.to_image(s.image, s.affine) for s in (fixed, moving))
    )
    linear = linear_alignment.Linear(["rigid"], factors=(4, 2))(sides)[:3, :3]
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-6)


def test_centres_meet_wherever_the_headers_put_the_images():
    fixed, moving = scans(3)
    far = moving.affine.copy()
    far[:3, 3] += 500
    sides = linear_alignment.Sides(
        coordinates.to_image(fixed.image, fixed.affine), coordinates.to_image(moving.image, far)
    )
    found = linear_alignment.Linear([], "geometry")(sides)
    np.testing.assert_allclose(found[:3, 3], 500, atol=1e-6)
    with pytest.raises(UserError, match="no place"):
        linear_alignment.Linear([])(sides)
    with pytest.raises(UserError, match="no place"):
        linear_alignment.Nothing()(sides)


def test_the_models_grid_is_the_same_for_every_way_of_storing_an_image():
    fixed, _ = scans(3)
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(fixed.image, fixed.affine))
    turned = turned.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    other = Scan(np.asarray(turned.dataobj), turned.affine)
    places = [ModelGrid(spacing=2.0).place(scan) for scan in (fixed, other)]
    assert places[0].shape == places[1].shape
    np.testing.assert_allclose(places[0].affine, places[1].affine, atol=1e-9)
    stored = ModelGrid(axes="image").place(other)
    assert stored.shape == other.image.shape
    np.testing.assert_allclose(stored.affine, other.affine)


def test_the_models_grid_grows_to_cover_and_shrinks_to_a_bound():
    fixed, _ = scans(3)  # 20 x 17 x 18
    assert ModelGrid((8, 40, 8)).place(fixed).shape == (20, 40, 18)
    assert ModelGrid((24, 24), axes="image").place(fixed).shape == (24, 24, 18)
    small = ModelGrid(largest=500).place(fixed)
    assert 300 < np.prod(small.shape) <= 600
    with pytest.raises(UserError, match="lpi"):
        ModelGrid(axes="lpi").place(fixed)


def oblique(shape, spacing):
    turn = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, (5, -7, 11)
    return Scan(np.random.default_rng(0).random(shape, np.float32), affine)


def test_a_grid_along_the_worlds_axes_holds_what_was_seen_and_no_more():
    scan = oblique((13, 14, 15), (1.0, 1.0, 1.2))
    known = np.zeros(scan.image.shape, bool)
    known[3:9, 4:12, 2:11] = True
    known[5, 6, 7] = False  # a hole does not matter
    for inside in (known, np.ones_like(known)):
        grid = ModelGrid(axes="world").place(scan, inside)
        np.testing.assert_allclose(grid.affine[:3, :3], np.eye(3), atol=1e-12)
        voxels = np.argwhere(inside)
        at = coordinates.transform(np.linalg.inv(grid.affine) @ scan.affine, voxels)
        assert (at.min(0) >= -0.5).all()
        assert (at.max(0) <= np.array(grid.shape) - 0.5).all()
        np.testing.assert_allclose(at.min(0), np.array(grid.shape) - 1 - at.max(0), atol=1e-9)
        assert (at.min(0) < 0.5).all()
    whole = ModelGrid(axes="world").place(scan)
    assert whole.shape == grid.shape
    coarse = ModelGrid(spacing=2.0, axes="world").place(scan)
    np.testing.assert_allclose(coarse.affine[:3, :3], 2 * np.eye(3), atol=1e-12)


def test_straight_images_and_thick_slices_are_not_resampled_along_the_worlds_axes():
    straight, _ = scans(3)
    straight = replace(straight, affine=np.diag([-1.0, 2.0, 1.0, 1.0]))
    for scan in (straight, oblique((13, 14, 5), (1.0, 1.0, 2.5))):
        ras, placed = ModelGrid().place(scan), ModelGrid(axes="world").place(scan)
        assert placed.shape == ras.shape
        np.testing.assert_array_equal(placed.affine, ras.affine)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_field_is_the_same_displacement_of_the_world_on_another_grid(ndim):
    fixed, other = frames(ndim)
    bend = np.random.default_rng(0).normal(size=(ndim, ndim)) * 0.02

    def displaced(frame):  # a linear displacement of places, in voxels of the frame
        x = np.indices(frame.shape).reshape(ndim, -1)
        places = frame.lps[:-1, :-1] @ x + frame.lps[:-1, -1:]
        return (np.linalg.inv(frame.lps[:-1, :-1]) @ bend @ places).reshape(ndim, *frame.shape)

    u = torch.from_numpy(displaced(other)).float()[None]
    found = carried(u, other, fixed)
    x = np.indices(fixed.shape).reshape(ndim, -1).T
    at = coordinates.transform(np.linalg.inv(other.lps) @ fixed.lps, x)
    inside = ((at > 0) & (at < np.array(other.shape) - 1)).all(1).reshape(fixed.shape)
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[:, inside], displaced(fixed)[:, inside], atol=1e-4)


def registrar(**more):
    losses = {
        "similarity": Similarity(mean_squares, weight=50.0),
        "smoothness": Diffusion(weight=0.5),
    }
    return Registrar(
        Identity(),
        linear_alignment.Nothing(),
        instance_optimization.FieldOptimised(losses, steps=[30, 30], largest=20000),
        **more,
    )


def turned(scan, order, signs):
    """The same image in the world, its axes in another order and direction."""
    moved = np.transpose(scan.image, order)
    affine = scan.affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            moved = np.flip(moved, axis)
            affine[:3, 3] += affine[:3, axis] * (moved.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Scan(np.ascontiguousarray(moved), affine)


def ends(answer, places):
    return np.array([answer.deformation.forward.TransformPoint(p) for p in places.tolist()])


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_how_an_image_is_stored_does_not_change_the_answer_in_the_world(side):
    def bend(degrees, shift):
        return affine_matrix(degrees, (1, 1, 1), shift)

    pair = dict(zip(("fixed", "moving"), scans(3, bend((0, 0, 6), (1.5, -1, 1))), strict=True))
    places = np.random.default_rng(0).uniform(-7, 7, (50, 3))
    plain = ends(registrar()(**pair), places)
    assert np.linalg.norm(plain - places, axis=1).mean() > 1  # it moved
    stored = pair | {side: turned(pair[side], (2, 0, 1), (-1, 1, -1))}
    missed = np.linalg.norm(ends(registrar()(**stored), places) - plain, axis=1)
    assert missed.max() < (1e-2 if side == "fixed" else 0.1)


def test_a_resampled_moving_image_gives_the_same_answer_in_the_world():
    move = affine_matrix((0, 0, 6), (1, 1, 1), (1.5, -1, 1))
    fixed, moving = scans(3, move)
    oblique = affine_matrix((20, -15, 30), (1, 1.1, 0.9), (0, 0, 0))
    oblique[:3, 3] = -oblique[:3, :3] @ [19.5, 19.5, 19.5]
    again = Scan(blob(Frame((40, 40, 40), oblique), move=move), oblique)
    places = np.random.default_rng(0).uniform(-7, 7, (50, 3))
    missed = ends(registrar()(fixed, again), places) - ends(registrar()(fixed, moving), places)
    assert np.linalg.norm(missed, axis=1).mean() < 0.5


@pytest.mark.parametrize("side", ["fixed", "moving"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_padding_round_a_turned_image_does_not_change_the_answer(side, ndim):
    pair = dict(
        zip(
            ("fixed", "moving"), scans(ndim, affine_matrix((0, 0, 6), (1, 1, 1), (1.5, -1, 0))),
            strict=True,
        )
    )  # fmt: skip
    scan = pair[side]
    image, _, _, matrix = padded(scan.image, (0, 0, 25), (0.9, 0.9, 0.9))
    stored = pair | {
        side: Scan(image.astype(np.float32), scan.affine @ coordinates.embedded(matrix))
    }
    places = np.random.default_rng(0).uniform(-7, 7, (50, ndim))
    plain = ends(registrar()(**pair), places)
    assert np.linalg.norm(plain - places, axis=1).mean() > 1
    missed = np.linalg.norm(ends(registrar()(**stored), places) - plain, axis=1)
    assert missed.mean() < 0.3


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_come_home_and_labels_go_where_the_image_goes(ndim):
    fixed, moving = scans(ndim, affine_matrix((0, 0, 4), (1, 1, 1), (1, -1, 0)))
    found = registrar()(fixed, moving).deformation
    inside = np.random.default_rng(0).uniform(6, 10, (9, ndim))
    np.testing.assert_allclose(
        points_in_fixed(found, points_in_moving(found, inside)), inside, atol=0.1
    )
    steps = np.rint(moving.image / 100).astype(np.int16)
    labels = warped(steps, found, linear=False)
    assert labels.dtype == np.int16
    there = points_in_moving(found, np.argwhere(np.ones(labels.shape)))
    cell = np.floor(there + 0.5).astype(int)
    known = ((cell >= 0) & (cell < steps.shape)).all(1)
    np.testing.assert_array_equal(labels.ravel()[known], steps[tuple(cell[known].T)])
    assert not labels.ravel()[~known].any()


def test_no_time_leaves_the_models_answer_and_a_pull_keeps_near_it():
    fixed, moving = scans(2, affine_matrix((0, 0, 0), (1, 1, 1), (3, 0, 0)))
    losses = {"similarity": Similarity(mean_squares, weight=5e-5)}
    pair = registrar().paired(fixed, moving, ModelGrid().place(fixed), "a")
    free, held, late = (
        instance_optimization.FieldOptimised(losses, steps=[20], **more)(pair, Identity())
        for more in ({}, {"pull": 1e5}, {"seconds": 0})
    )
    assert not late.any()
    assert 0 < held.abs().mean() < 0.1 * free.abs().mean()


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_only_what_both_images_saw_counts(shape):
    ndim, generator = len(shape), torch.Generator().manual_seed(0)
    fixed, moving = (torch.rand(2, 1, 1, *shape, generator=generator) > 0.3).unbind()
    shift = [2, -1, 3][:ndim]
    u = torch.tensor(shift).float().view(1, -1, *[1] * ndim).expand(1, -1, *shape)
    found = instance_optimization.counted(Pair(fixed_mask=fixed, moving_mask=moving), u)[
        "fixed_mask"
    ][0, 0]
    for x in np.ndindex(shape):
        y = tuple(np.add(x, shift))
        inside = all(0 <= i < n for i, n in zip(y, shape, strict=True))
        assert found[x] == (fixed[(0, 0, *x)] and inside and moving[(0, 0, *y)])
    assert found.any()
    assert instance_optimization.counted(Pair(fixed_mask=fixed), u)["fixed_mask"] is fixed


def test_a_network_is_tuned_on_a_copy():
    fixed, moving = scans(2, affine_matrix((0, 0, 0), (1, 1, 1), (2, 0, 0)))
    torch.manual_seed(0)
    model = VoxelMorph(2, (), (4, 4), ((4,), (4,)), ())
    before = {name: w.clone() for name, w in model.state_dict().items()}
    losses = {"similarity": Similarity(mean_squares)}
    pair = registrar(intensity=lambda a: a / 1000).paired(
        fixed, moving, ModelGrid().place(fixed), "a"
    )
    with torch.no_grad():
        plain = model(pair["fixed"], pair["moving"])[-1]
    tuned = instance_optimization.NetworkOptimised(losses, steps=5, rate=1e-2)(pair, model)
    assert not torch.allclose(tuned, plain)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    with pytest.raises(UserError, match="run="):
        instance_optimization.NetworkOptimised(losses)(pair, Identity())


def test_levels_halve_and_thick_slices_wait():
    assert instance_optimization.level_shapes((64, 64, 10), (1, 1, 4), 3, 10**6) == [
        [16, 16, 10],
        [32, 32, 10],
        [64, 64, 10],
    ]
    (only,) = instance_optimization.level_shapes((64, 64, 64), (1, 1, 1), 1, 5000)
    assert 4000 < np.prod(only) <= 5000


QUIET = ("refine.steps=[4]", "refine.largest=4000", "align=world", "device=cpu")


def test_arrays_are_registered_in_a_notebook():
    fixed, moving = scans(2, affine_matrix((0, 0, 0), (1, 1, 1), (2, 0, 0)))
    size = tuple(slice(0, n) for n in np.minimum(fixed.image.shape, moving.image.shape))
    found = regnet_lab.register(fixed.image[size], moving.image[size].astype(np.int16), *QUIET)
    assert found.warped.dtype == np.int16
    at = np.indices(found.warped.shape) + found.displacement
    theirs = map_coordinates(moving.image[size].astype(np.int16).astype(float), at, order=1)
    inner = (slice(3, -3),) * 2
    assert np.abs(found.warped - theirs)[inner].max() < 1


def test_simpleitk_images_are_registered_in_a_notebook():
    fixed, moving = (coordinates.to_image(s.image, s.affine) for s in scans(3))
    found = regnet_lab.register(fixed, moving, *QUIET)
    theirs = sitk.Resample(moving, fixed, found.transform, sitk.sitkLinear)
    inner = (slice(5, -5),) * 3
    ours = sitk.GetArrayFromImage(found.warped)
    assert np.abs(ours - sitk.GetArrayFromImage(theirs))[inner].max() < 1e-3 * np.ptp(ours)
    point = (1.0, 2.0, 3.0)
    back = found.inverse.TransformPoint(found.transform.TransformPoint(point))
    np.testing.assert_allclose(back, point, atol=0.1)


@pytest.mark.parametrize(
    ("image", "named"),
    [(np.zeros((3, 4, 5, 6)), "2D or 3D"), (np.full((5, 6), np.nan), "finite")],
)
def test_a_bad_array_is_named(image, named):
    with pytest.raises(UserError, match=named):
        regnet_lab.register(image, image, *QUIET)


def test_results_may_go_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with delivered(Path(".")) as aside:
        (aside / "u.txt").write_text("1", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["u.txt"]


def test_a_failed_delivery_leaves_what_was_there(tmp_path):
    folder = tmp_path / "a" / "b"

    def fill():
        with delivered(folder) as aside:
            (aside / "half").write_text("x", encoding="utf-8")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left.*make room"):
        fill()
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "kept").write_text("old", encoding="utf-8")
    with delivered(folder) as aside:
        (aside / "new").write_text("x", encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {"kept", "new"}
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


@contextmanager
def small_disk(size):
    """No file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(files, composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    images = [argument for argument in given(files) if "_" not in argument.split("=")[0]]
    cfg = composed("register", *images, *QUIET)
    with small_disk(3000), pytest.raises(UserError, match="registered cannot be written") as caught:
        register.serve(cfg)
    assert "make room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["itk", "field", "ants", "fsl", "l2r", ".nii.gz", ".nrrd", ".mha"])
def test_no_writer_takes_a_full_disk_for_success_or_speaks_of_it(kind, tmp_path, capfd):
    frame = Frame((20, 17, 18), np.eye(4))
    noise = np.random.default_rng(0).normal(size=(3, *frame.shape)).astype(np.float32) / 5
    found = Deformation(frame, frame, np.eye(4), noise)
    assert found.v.shape == noise.shape  # before the disk is full

    def write(aside):
        if kind.startswith("."):
            write_image(aside / f"warped{kind}", noise[0], frame.affine)
        else:
            write_transforms(aside, found, [kind])

    def deliver():
        with delivered(tmp_path / "out") as aside:
            write(aside)

    with small_disk(10_000), pytest.raises(UserError, match="cannot be written") as caught:
        deliver()
    assert "0x" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not capfd.readouterr().err


@pytest.mark.parametrize("choice", ["affine", "rigid", "centre", "world"])
def test_every_alignment_builds(choice, composed):
    assert build(composed("register", f"align={choice}").align)


@pytest.mark.parametrize("choice", ["instance", "network"])
def test_every_refinement_builds(choice, composed):
    assert build(composed("register", f"refine={choice}").refine)


@pytest.mark.parametrize("place", ["data.dataset", "data.dataset.images"])
def test_a_run_tells_how_its_images_were_prepared(place, tmp_path):
    run = OmegaConf.create({"folder": str(tmp_path)})
    OmegaConf.update(
        run, f"{place}.prepare", {"spacing": 4.0, "intensity": "window", "shape": None}
    )
    assert remembered(run) == {"spacing": 4.0, "intensity": "window"}
    (tmp_path / "grid.json").write_text('{"shape": [5, 6]}', encoding="utf-8")
    assert remembered(run)["shape"] == [5, 6]


def test_a_runs_network_takes_images_of_any_spacing_to_the_grid_it_was_trained_on(
    command, composed, tmp_path, monkeypatch
):
    trained = command(
        "train.py",
        "ndim=2",
        "data.dataset.shape=24",
        "data.dataset.size=2",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        "run_dir=run",
        "doctor=null",
    )
    assert trained.returncode == 0, trained.stderr
    run = tmp_path / "outputs" / "run"
    grid = json.loads((run / "grid.json").read_text(encoding="utf-8"))
    assert grid["shape"] == [24, 24]
    fixed, moving = scans(2)
    fine = np.diag([0.5, 0.5, 1, 1])
    for name, scan in (("a", fixed), ("b", moving)):
        save(tmp_path / f"{name}.nii", scan.image[..., None], scan.affine @ fine)
    monkeypatch.chdir(tmp_path)
    cfg = composed("register", f"run={run}", "fixed=a.nii", "moving=b.nii", "device=cpu")
    registrar_used = register.registrar_of(cfg, ["run=x"])
    assert registrar_used.refine is None
    assert register.registrar_of(cfg, ["refine=instance"]).refine is not None
    placed = registrar_used.grid.place(Scan(fixed.image, fixed.affine @ fine))
    np.testing.assert_allclose(coordinates.spacing(placed.affine, 2), grid["spacing"])
    register.serve(cfg)
    sheet = json.loads((tmp_path / "registered" / "quality.json").read_text(encoding="utf-8"))
    assert sheet["similarity"]["registered"]["ncc"] > 0.5
