"""Atlases: the functions against closed forms, the task on files with known results."""

import json
from functools import partial

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from scipy import ndimage
from torch import nn

from regnet_lab import ops
from regnet_lab.data.case import Case
from regnet_lab.data.datasets.base import CasePairs
from regnet_lab.data.datasets.unique_images import collect_unique_images
from regnet_lab.data.preprocessing.functional import normalize_window
from regnet_lab.data.preprocessing.grids import CropOrPad, ResampleToFixed
from regnet_lab.data.synthesis.phantom_pairs import PhantomPairs
from regnet_lab.errors import UserError
from regnet_lab.evaluation import atlas as task
from regnet_lab.evaluation import atlas_functional
from regnet_lab.evaluation.atlas import AtlasTask
from regnet_lab.models import Identity
from regnet_lab.training.module import RegistrationModule

SHAPES = pytest.mark.parametrize("shape", [(20, 22), (20, 17, 18)])


def noise(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def blob(shape, centre, width=2.5):
    """Make a Gaussian blob, (1, 1, *shape)."""
    squares = sum((x - c) ** 2 for x, c in zip(np.indices(shape), centre, strict=True))
    return torch.from_numpy(np.exp(-squares / 2 / width**2)).float()[None, None]


def constant(shape, shift):
    return torch.tensor(shift).float().view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)


def smooth(shape, seed, size=1.0):
    rough = noise(len(shape), *shape, seed=seed).numpy()
    field = np.stack([ndimage.gaussian_filter(component, 3) for component in rough])
    return torch.from_numpy(field / np.abs(field).max() * size).float()[None]


# --- functions


@SHAPES
def test_the_mean_weights_every_image_by_its_jacobian_determinant(shape):
    fields = [smooth(shape, seed, 3.0) for seed in range(3)]
    images = [noise(1, 1, *shape, seed=seed) for seed in range(3)]
    top = bottom = 0
    for image, u in zip(images, fields, strict=True):
        v = u[0].double().numpy()
        slopes = np.stack([np.stack(np.gradient(component), -1) for component in v], -2)
        weight = np.clip(np.linalg.det(slopes + np.eye(len(shape))), 1e-3, None)
        at = np.indices(shape) + v
        warped = ndimage.map_coordinates(image[0, 0].numpy(), at, order=1, mode="nearest")
        top, bottom = top + weight * warped, bottom + weight
    template = atlas_functional.compute_weighted_mean(zip(images, fields, strict=True))
    np.testing.assert_allclose(template[0, 0], top / bottom, atol=2e-4)


@SHAPES
def test_a_template_of_translated_images_moves_to_their_mean_position(shape):
    middle = np.array([n / 2 for n in shape])
    shifts = np.array([[2.0, 0, 1], [1, 3, -1], [3, 0, 3]])[:, : len(shape)]
    fields = [constant(shape, shift) for shift in shifts]
    images = [blob(shape, middle + shift, 1.5) for shift in shifts]
    biased = atlas_functional.compute_weighted_mean(zip(images, fields, strict=True))
    torch.testing.assert_close(biased, blob(shape, middle, 1.5), atol=0.02, rtol=0)
    centred = atlas_functional.recenter_displacements(fields)
    for u, shift in zip(centred, shifts, strict=True):
        torch.testing.assert_close(u, constant(shape, shift - shifts.mean(0)))
    moved = atlas_functional.compute_weighted_mean(zip(images, centred, strict=True))
    expected = blob(shape, middle + shifts.mean(0), 1.5)
    torch.testing.assert_close(moved, expected, atol=0.02, rtol=0)


@SHAPES
def test_recentering_nearly_removes_the_mean_of_displacements_that_vary(shape):
    fields = [smooth(shape, seed) + smooth(shape, 9) for seed in range(3)]
    before = torch.stack(fields).mean(0).norm(dim=1).mean()
    centred = atlas_functional.recenter_displacements(fields)
    assert torch.stack(centred).mean(0).norm(dim=1).mean() < 0.2 * before


@SHAPES
def test_recentering_is_the_inverse_of_the_mean_to_second_order(shape):
    def error(size):
        u = size * smooth(shape, 9)
        exact = ops.compose(ops.invert(u, tolerance=1e-7), u)
        return (atlas_functional.recenter_displacements([u])[0] - exact).norm(dim=1).mean()

    assert error(0.2) < 0.35 * error(0.4)


def test_recentering_by_a_folding_mean_does_not_fold():
    wave = torch.zeros(1, 2, 30, 12)
    wave[:, 0] = 4 * torch.sin(torch.linspace(0, 4 * torch.pi, 30))[:, None]
    assert ops.jacobian_determinant(wave).min() < 0
    zero = wave - wave
    recentered, _ = atlas_functional.recenter_displacements([zero, 2 * wave])
    assert ops.jacobian_determinant(recentered).min() > 0


@SHAPES
def test_sharpness_of_a_ramp_is_its_slope_per_millimetre(shape):
    spacing = torch.tensor([[2.0, 0.5, 3.0][: len(shape)]])
    ramp = sum(
        3.0 * s * x for s, x in zip(spacing[0], ops.identity_grid(shape, spacing)[0], strict=True)
    )
    everywhere = torch.ones(1, 1, *shape, dtype=torch.bool)
    sharpness = atlas_functional.compute_sharpness(ramp[None, None], everywhere, spacing)
    assert sharpness == pytest.approx(3 * len(shape) ** 0.5, rel=1e-4)


@SHAPES
def test_votes_are_counted_by_label_and_the_first_of_equals_wins(shape):
    values = [0, 4, 17]
    maps = [
        torch.tensor(values)[noise(1, 1, *shape, seed=s).abs().clamp(max=2).long()] for s in (1, 2)
    ]
    votes = sum(atlas_functional.encode_one_hot(labels, values) for labels in maps)
    for channel, value in enumerate(values):
        assert (votes[:, channel] == sum((labels[:, 0] == value).int() for labels in maps)).all()
    torch.testing.assert_close(
        atlas_functional.select_majority_labels(votes, values), torch.minimum(*maps)
    )


@SHAPES
def test_fused_labels_have_most_votes_at_the_mapped_points(shape):
    values = [0, 5, 9]
    votes = torch.randint(0, 9, (1, 3, *shape), generator=torch.Generator().manual_seed(0))
    v = smooth(shape, 7, 2.0)
    at = np.indices(shape) + v[0].numpy()
    shares = [
        ndimage.map_coordinates(channel.numpy().astype(float), at, order=1) for channel in votes[0]
    ]
    first, second = np.sort(shares, axis=0)[[-1, -2]]
    inside = ((at >= 0) & (at <= np.array(shape).reshape(-1, *[1] * len(shape)) - 1)).all(0)
    clear = inside & (first - second > 1e-3)
    assert clear.mean() > 0.5
    expected = np.array(values)[np.argmax(shares, axis=0)]
    labels = atlas_functional.fuse_labels(votes.short(), values, v)[0, 0].numpy()
    np.testing.assert_array_equal(labels[clear], expected[clear])


def test_points_outside_the_atlas_are_background():
    votes = torch.ones(1, 2, 6, 6, dtype=torch.int16)
    votes[:, 0] = 0
    labels = atlas_functional.fuse_labels(votes, [0, 3], constant((6, 6), [4.0, 0.0]))[0, 0]
    assert (labels[:2] == 3).all()
    assert (labels[2:] == 0).all()


# --- the images of a data set


def write(folder, name, array, affine):
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii")
    return folder / f"{name}.nii"


def make_cases(folder, shape, count, affine=None, seed=0, labelled=True):
    """Gaussian blobs at different positions, the inner part labelled 7, the outer one 3."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        place = np.array(shape) / 2 + rng.uniform(-2, 2, len(shape))
        image = blob(shape, place)[0, 0].numpy()
        labels = np.select([image > 0.7, image > 0.3], [7, 3]).astype(np.int16)
        case_affine = np.eye(4) if affine is None else affine(number)
        path = write(folder, f"img{number}", image, case_affine)
        marks = write(folder, f"seg{number}", labels, case_affine) if labelled else None
        cases.append(Case(f"case{number}", path, marks))
    return cases


def pairs_of(cases):
    return list(zip(cases, cases[1:] + cases[:1], strict=True))


@SHAPES
def test_every_image_of_the_pairs_comes_once_with_its_labels(shape, tmp_path):
    cases = make_cases(tmp_path, shape, 3)
    grid = CropOrPad(shape)
    subjects = collect_unique_images(CasePairs(pairs_of(cases), grid))
    assert subjects.names == ["case0", "case1", "case2"]
    for subject, case in zip(subjects, cases, strict=True):
        expected = grid(case, case)
        torch.testing.assert_close(subject.image[0], expected["fixed"])
        torch.testing.assert_close(subject.labels[0], expected["fixed_labels"])
    named = CasePairs(pairs_of(cases), grid, [f"pair{i}" for i in range(len(cases))])
    assert collect_unique_images(named).names == subjects.names


@SHAPES
def test_images_of_world_grids_lie_on_that_of_the_first_with_its_affine(shape, tmp_path):
    def affine(number):
        moved = np.diag([2.0, 2.0, 2.0, 1.0])
        moved[:3, 3] = [10 + 2 * number, -4, 3]
        return moved

    cases = make_cases(tmp_path, shape, 2, affine)
    grid = ResampleToFixed()
    subjects = collect_unique_images(CasePairs(pairs_of(cases), grid))
    np.testing.assert_allclose(subjects.affine, affine(0))
    torch.testing.assert_close(subjects[1].image[0], grid(cases[0], cases[1])["moving"])
    assert subjects.spacing.tolist() == [[2.0] * len(shape)]


@SHAPES
def test_the_affine_of_a_padded_grid_leads_to_where_its_voxels_were(shape, tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    cases = make_cases(tmp_path, shape, 2, lambda _: affine)
    wide = CropOrPad([n + 6 for n in shape], intensity=partial(normalize_window, low=0, high=1))
    subjects = collect_unique_images(CasePairs(pairs_of(cases), wide))
    original = nibabel.load(cases[0].image)
    peak = np.array(np.unravel_index(original.get_fdata().argmax(), shape))
    template_peak = np.array(
        np.unravel_index(subjects[0].image.argmax().item(), [n + 6 for n in shape])
    )
    pad = [0] * (3 - len(shape)) + [1]
    np.testing.assert_allclose(subjects.affine @ [*template_peak, *pad], affine @ [*peak, *pad])


def test_images_made_in_memory_come_once_each(tmp_path):
    subjects = collect_unique_images(PhantomPairs("test", 2, shape=24, num_pairs=2, seed=1))
    assert len(subjects) == 4
    assert len(set(subjects.names)) == 4
    pair = PhantomPairs("test", 2, shape=24, num_pairs=2, seed=1)[1]
    torch.testing.assert_close(subjects[3].image[0], pair["moving"])
    np.testing.assert_allclose(subjects.affine, np.eye(4))


def test_a_single_image_and_images_of_several_shapes_are_refused(tmp_path):
    (case,) = make_cases(tmp_path, (9, 11), 1)
    with pytest.raises(UserError, match="at least two images, but the pairs hold only case0"):
        collect_unique_images(CasePairs([(case, case)], CropOrPad((9, 11))))
    pairs = [
        {"fixed": torch.zeros(1, 4, n), "moving": torch.ones(1, 4, n), "name": str(n)}
        for n in (5, 6)
    ]
    with pytest.raises(UserError, match=r"2 shapes, such as \(4, 5\) and \(4, 6\)"):
        collect_unique_images(pairs)


# --- the task


class BlobRegistration(nn.Module):
    """Register blobs by the difference of their centers of mass."""

    def forward(self, fixed, moving):
        def mass(image):
            x = ops.identity_grid(image.shape[2:], image)
            weight = image.clamp(min=1e-4) ** 4
            return (x * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)

        return [constant(fixed.shape[2:], (mass(moving) - mass(fixed))[0].tolist()).clone()]


def run(folder, dataset, model=None, **options):
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, enable_progress_bar=False
    )
    module = RegistrationModule(model or BlobRegistration(), {}, None, name="hills")
    data = torch.utils.data.DataLoader(dataset)
    AtlasTask(str(folder / "out"), **options).run(trainer, module, data)
    return json.loads((folder / "out" / "atlas.json").read_text(encoding="utf-8")), folder / "out"


def load(path):
    return nibabel.load(path).get_fdata()


@SHAPES
def test_the_atlas_of_translated_blobs_is_the_blob_at_their_mean_position(shape, tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [5, 6, 7]
    cases = make_cases(tmp_path, shape, 5, lambda _: affine)
    facts, out = run(tmp_path, CasePairs(pairs_of(cases), CropOrPad(shape)), tolerance=1e-3)
    images = [
        collect_unique_images(CasePairs(pairs_of(cases), CropOrPad(shape)))[i].image
        for i in range(5)
    ]
    mean, template = load(out / "mean.nii.gz"), load(out / "template.nii.gz")
    np.testing.assert_allclose(mean, torch.stack(images).mean(0)[0, 0], atol=1e-6)
    places = [ndimage.center_of_mass(load(case.image)) for case in cases]
    np.testing.assert_allclose(ndimage.center_of_mass(template**4), np.mean(places, 0), atol=0.15)
    assert template.max() > mean.max() + 0.02
    np.testing.assert_allclose(nibabel.load(out / "template.nii.gz").affine, affine)
    assert facts["changes"][0] > facts["changes"][-1] <= 1e-3
    assert facts["mean_displacement_vox"] < 0.1
    assert facts["sharper_percent"] > 5
    sharp = facts["sharpness_per_mm"]
    assert sharp["template"] / sharp["mean"] == pytest.approx(1 + facts["sharper_percent"] / 100)


@SHAPES
def test_labels_are_those_of_the_blob_and_the_votes_add_up(shape, tmp_path):
    cases = make_cases(tmp_path, shape, 5)
    facts, out = run(tmp_path, CasePairs(pairs_of(cases), CropOrPad(shape)))
    shares = load(out / "probabilities.nii.gz").reshape(*shape, 3)
    winners, most = load(out / "labels.nii.gz"), load(out / "max_probability.nii.gz")
    assert facts["labels"] == [0, 3, 7]
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(shares.max(-1), most)
    np.testing.assert_array_equal(np.array([0, 3, 7])[shares.argmax(-1)], winners)
    assert nibabel.load(out / "labels.nii.gz").get_data_dtype() == np.int16
    template = load(out / "template.nii.gz")
    assert (
        template[winners == 7].mean()
        > template[winners == 3].mean()
        > template[winners == 0].mean()
    )
    table = pd.read_csv(out / "cases.csv").pivot(index="case", columns="method", values="dice")
    assert set(table.index) == {case.name for case in cases}
    assert (table["hills"] > table["identity"]).all()
    assert table["hills"].mean() > 0.8
    assert facts["leave_one_out"]["hills"]["dice"]["mean"] == pytest.approx(table["hills"].mean())
    assert set(pd.read_csv(out / "labels.csv").label) == {3, 7}


def test_a_subject_has_no_vote_on_itself_and_a_label_of_its_own_does_not_count(tmp_path):
    shape = (9, 11)
    cases = make_cases(tmp_path, shape, 3)
    first = np.zeros(shape, np.int16)
    first[1:3, 1:3] = 5
    second = np.zeros(shape, np.int16)
    second[5:8, 5:8] = 2
    for case, labels in zip(cases, (first + second, second, second), strict=True):
        write(tmp_path, case.labels.stem, labels, np.eye(4))
    run(tmp_path, CasePairs(pairs_of(cases), CropOrPad(shape)), Identity())
    table = pd.read_csv(tmp_path / "out" / "labels.csv").set_index(["case", "method", "label"])[
        "dice"
    ]
    assert np.isnan(table["case0", "hills", 5])
    assert (table[:, :, 2] == 1).all()
    assert pd.read_csv(tmp_path / "out" / "cases.csv")["dice"].tolist() == [1.0] * 6


def test_without_registration_the_template_is_the_unweighted_mean(tmp_path):
    cases = make_cases(tmp_path, (9, 11), 3, labelled=False)
    facts, out = run(tmp_path, CasePairs(pairs_of(cases), CropOrPad((9, 11))), Identity())
    np.testing.assert_allclose(load(out / "template.nii.gz"), load(out / "mean.nii.gz"), atol=1e-6)
    assert len(facts["changes"]) == 1
    assert facts["sharper_percent"] == pytest.approx(0, abs=1e-3)
    assert sorted(path.name for path in out.iterdir()) == [
        "atlas.json",
        "atlas.png",
        "mean.nii.gz",
        "template.nii.gz",
    ]


def test_without_recentering_the_template_stays_at_its_initial_position(tmp_path):
    shape = (20, 22)
    images = [blob(shape, (10, 8)), blob(shape, (10, 12)), blob(shape, (10, 12.5))]
    for number, image in enumerate(images):
        write(tmp_path, f"img{number}", image[0, 0].numpy(), np.eye(4))
    cases = [Case(f"case{n}", tmp_path / f"img{n}.nii") for n in range(3)]
    dataset = CasePairs(pairs_of(cases), CropOrPad(shape))

    class Fixed(nn.Module):
        """Registers each blob as if the template were a blob at 8."""

        def forward(self, fixed, moving):
            place = ops.identity_grid(shape, moving)[:, 1:]
            at = float((place * moving).sum() / moving.sum())
            return [constant(shape, (0.0, at - 8)).clone()]

    def middle(unbiased):
        run(tmp_path, dataset, Fixed(), unbiased=unbiased, max_rounds=1)
        template = load(tmp_path / "out" / "template.nii.gz") ** 4
        return ndimage.center_of_mass(template)[1]

    assert middle(False) == pytest.approx(8, abs=0.05)
    assert middle(True) == pytest.approx(np.mean([8, 12, 12.5]), abs=0.15)


def test_a_negative_tolerance_or_no_round_is_refused(tmp_path):
    for options in ({"tolerance": -1}, {"max_rounds": 0}):
        with pytest.raises(UserError, match=r"task\.tolerance"):
            AtlasTask(str(tmp_path), **options)


def test_too_few_rounds_are_warned_about(tmp_path, caplog):
    cases = make_cases(tmp_path, (9, 11), 3)
    run(tmp_path, CasePairs(pairs_of(cases), CropOrPad((9, 11))), max_rounds=1, tolerance=0)
    assert "task.max_rounds=1 reached before task.tolerance" in caplog.text


def test_an_empty_mask_has_no_sharpness(tmp_path):
    for number in range(2):
        write(tmp_path, f"img{number}", np.zeros((9, 11), np.float32), np.eye(4))
    cases = [Case(f"case{n}", tmp_path / f"img{n}.nii") for n in range(2)]
    facts, _ = run(tmp_path, CasePairs(pairs_of(cases), CropOrPad((9, 11))), Identity())
    assert facts["sharper_percent"] is None


def test_the_summary_says_less_sharp_where_it_is():
    facts = {"changes": [1, 2], "sharper_percent": -3.21, "model": "m"}
    assert task.format_summary(facts) == "2 rounds, 3.2 % less sharp than the plain mean"


def test_the_command_builds_an_atlas_of_any_data(command, tmp_path):
    data = ["data=synthetic", "ndim=2", "data.dataset.shape=24", "data.dataset.num_pairs=2"]
    done = command("evaluate.py", "model=identity", *data, "task=atlas", "output_dir=out")
    assert done.returncode == 0, done.stderr
    assert "atlas of 4 images by identity" in done.stdout
    assert (tmp_path / "out" / "labels.nii.gz").exists()
    assert (tmp_path / "out" / "summary.md").exists()
