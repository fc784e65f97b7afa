"""Cardiac data: small trees in the published form, what is listed and what is read."""

import json
import os
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets.cardiac import (
    VolumePairs,
    keep_overlapping_labels,
    list_cardiac_pairs,
    read_header,
)
from regnet_lab.data.datasets.cardiac_layouts import find_cardiac_files, read_acdc, read_sunnybrook
from regnet_lab.data.preprocessing.grids import CropOrPad
from regnet_lab.errors import UserError
from regnet_lab.metrics.overlap import dice
from tests.helpers.nifti import write_nifti

PLANE, DEPTH, PHASES = (12, 14), 6, 4
SPACING = (1.5, 1.5, 8.0)
DATA = os.environ.get("REGNET_LAB_DATA")
COUNTS = {"train": 2, "val": 1, "test": 0}
GRID = CropOrPad([8, 16])


def listed(fixed, moving):
    return fixed, moving


def save(path, array, spacing=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1])), path)


def cine(seed):
    """Voxel value 1 + slice + 100 phase, so that a slice says what it is, and some texture."""
    rng = np.random.default_rng(seed)
    k, t = np.meshgrid(np.arange(DEPTH), np.arange(PHASES), indexing="ij")
    return (1 + k + 100 * t + rng.uniform(0, 0.5, (*PLANE, 1, 1))).astype(np.float32)


def heart_labels(seed, structures=(1, 2, 3)):
    """Every structure somewhere in every slice."""
    rng = np.random.default_rng(seed)
    return rng.choice([0, *structures], (*PLANE, DEPTH)).astype(np.uint8)


def write_files(root, ed, es, ed_labels, es_labels, cine_file, folder="{}", count=3):
    for n in range(1, count + 1):
        subject = folder.format(f"{n:03d}")
        whole = cine(n)
        save(root / subject / ed.format(f"{n:03d}"), whole[..., 0])
        save(root / subject / es.format(f"{n:03d}"), whole[..., 2])
        save(root / subject / ed_labels.format(f"{n:03d}"), heart_labels(n))
        save(root / subject / es_labels.format(f"{n:03d}"), heart_labels(n + 50))
        save(root / subject / cine_file.format(f"{n:03d}"), whole)


def write_ukbb(root):
    names = ("sa_ED", "sa_ES", "label_sa_ED", "label_sa_ES", "sa")
    write_files(root, *(f"{name}.nii.gz" for name in names))


def write_mm(root):
    names = ("SA_ED", "SA_ES", "SA_ED_gt", "SA_ES_gt", "SA_CINE")
    write_files(root, *(f"{{}}_{name}.nii.gz" for name in names))
    save(root / "001" / "001_LA_ED.nii.gz", cine(1)[..., 0])


def write_renamed(root):
    names = ("ED_img", "ES_img", "ED_seg", "ES_seg", "cine")
    write_files(root, *(f"{name}.nii.gz" for name in names))


def write_acdc(root, split="training", numbers=(1, 9, 10)):
    for n in numbers:
        folder = root / split / f"patient{n:03d}"
        whole = cine(n)
        save(folder / f"{folder.name}_4d.nii.gz", whole)
        for frame in (1, 3):
            save(folder / f"{folder.name}_frame{frame:02d}.nii.gz", whole[..., frame - 1])
            save(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", heart_labels(n + frame))
        (folder / "Info.cfg").write_text("ED: 1\nES: 3\nGroup: DCM\nHeight: 184.0\nNbFrame: 4\n")


def write_acdc_training_and_testing(root):
    write_acdc(root)
    write_acdc(root, "testing", (101, 102))


def write_sunnybrook(root, labelled_slices=(1, 2, 4)):
    for n in (101, 201, 301):
        name = f"SCD0000{n}"
        save(root / f"{name}_cine4d.nii.gz", cine(n), SPACING)
        ed, es = heart_labels(n, (1, 2)), heart_labels(n + 1, (1,))
        unseen = np.setdiff1d(np.arange(DEPTH), labelled_slices)
        ed[..., unseen[1:]] = es[..., unseen] = 0
        save(root / f"{name}_ed_label.nii.gz", ed)
        save(root / f"{name}_es_label.nii.gz", es)
        notes = {"patient": name, "ed": 3, "es": 1, "slices_with_both": list(labelled_slices)}
        (root / f"{name}.json").write_text(json.dumps(notes))


LAYOUTS = {
    "cardiac": write_sunnybrook,
    "cardiac_ukbb": write_ukbb,
    "cardiac_mnms2": write_mm,
    "cardiac_mnms2_gradirn": write_renamed,
    "cardiac_acdc": write_acdc_training_and_testing,
}


def subject(case):
    return case.name.split("-t")[0].split("-E")[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_listed_and_read_by_its_yaml(name, tmp_path, composed):
    LAYOUTS[name](tmp_path)
    cfg = composed("train", f"data={name}", f"data.dataset.root={tmp_path}")
    if name in ("cardiac_ukbb", "cardiac_mnms2", "cardiac_mnms2_gradirn"):
        cfg.data.dataset.splits = COUNTS
    cfg.data.dataset.prepare.update(shape=[8, 16], spacing=None)
    data = instantiate_config(cfg.data)
    train, val, test = (data.make_dataset(split) for split in ("train", "val", "test"))
    people = [
        {subject(case) for pair in part.case_pairs for case in pair} for part in (train, val, test)
    ]
    assert people[0]
    assert people[0].isdisjoint(people[1] | people[2])
    assert len(val) == len(people[1])
    slices = {"cardiac": 3, "cardiac_ukbb": 3}.get(name, DEPTH)
    assert val[0]["fixed"].shape == val[0]["moving_labels"].shape == (1, 8, 16, slices)
    assert train[0]["fixed"].shape == (1, 8, 16)
    per_heart = DEPTH * PHASES * (PHASES - 1) if name == "cardiac" else DEPTH
    assert len(train) == len(people[0]) * per_heart
    assert ("fixed_labels" in train[0]) == (name != "cardiac")


def test_acdc_tests_on_its_own_test_set(tmp_path, composed):
    write_acdc_training_and_testing(tmp_path)
    dataset = instantiate_config(
        composed("train", "data=cardiac_acdc", f"data.dataset.root={tmp_path}").data
    ).dataset
    names = [
        {fixed.image.parent.name for fixed, _ in dataset(split=s).case_pairs}
        for s in ("train", "val", "test")
    ]
    assert names == [{"patient001"}, {"patient009", "patient010"}, {"patient101", "patient102"}]


@pytest.mark.parametrize(
    ("write", "layout", "ed", "es"),
    [
        (write_acdc, read_acdc, 0, 2),
        (write_sunnybrook, read_sunnybrook, 3, 1),
        (
            write_mm,
            lambda root: find_cardiac_files(
                root,
                "{}/{}_SA_ED.nii.gz",
                "{}/{}_SA_ES.nii.gz",
                "{}/{}_SA_ED_gt.nii.gz",
                "{}/{}_SA_ES_gt.nii.gz",
            ),
            0,
            2,
        ),
    ],
)
def test_end_diastole_is_fixed_and_end_systole_moves_slice_by_slice(
    write, layout, ed, es, tmp_path
):
    write(tmp_path)
    prepare = CropOrPad(PLANE, intensity=lambda image: image)
    options = {"root": str(tmp_path), "prepare": prepare, "layout": layout, "splits": COUNTS}
    volume = list_cardiac_pairs("val", **options)[0]
    whole = sorted(layout(str(tmp_path)).items())[-1][1]
    slices = whole.slices or range(DEPTH)
    for side, phase in (("fixed", ed), ("moving", es)):
        values = [int(volume[side][..., i].min()) for i in range(volume[side].shape[-1])]
        assert values == [1 + k + 100 * phase for k in slices]
    for i, k in enumerate(slices):
        labels = np.asarray(nibabel.load(whole.es.labels).dataobj)[:, :, k]
        assert volume["moving_labels"][0, ..., i].tolist() == labels.tolist()
    first = list_cardiac_pairs("train", **options)[1]
    assert int(first["fixed"].min()) == 1 + slices[1] + 100 * ed
    assert int(first["moving"].min()) == 1 + slices[1] + 100 * es


def test_any_two_phases_of_one_slice_make_a_training_pair(tmp_path):
    write_sunnybrook(tmp_path)
    pairs = list_cardiac_pairs(
        "train", str(tmp_path), listed, read_sunnybrook, COUNTS, any_phases=True
    ).case_pairs
    assert len(set(pairs)) == len(pairs) == 2 * DEPTH * PHASES * (PHASES - 1)
    assert all(f.image == m.image and f.slice == m.slice and f.phase != m.phase for f, m in pairs)
    assert {f.slice for f, _ in pairs} == set(range(DEPTH))
    assert all(f.labels is None and m.labels is None for f, m in pairs)
    assert len({case.name for pair in pairs for case in pair}) == 2 * DEPTH * PHASES


def test_slices_are_chosen_by_relative_position(tmp_path):
    write_ukbb(tmp_path)

    def layout(root):
        return find_cardiac_files(root, "{}/sa_ED.nii.gz", "{}/sa_ES.nii.gz")

    chosen = {"train_slices": [0.5], "eval_slices": [0.25, 0.5, 0.99]}
    train = list_cardiac_pairs("train", str(tmp_path), listed, layout, COUNTS, **chosen)
    assert [fixed.slice for fixed, _ in train.case_pairs] == [3, 3]
    val = list_cardiac_pairs(
        "val",
        str(tmp_path),
        CropOrPad(PLANE, intensity=lambda image: image),
        layout,
        COUNTS,
        **chosen,
    )[0]
    assert val["fixed"].amin((0, 1, 2)).int().tolist() == [2, 4, 6]
    assert val["spacing"].tolist() == [1.5, 1.5, 16.0]
    pair = list_cardiac_pairs("val", str(tmp_path), GRID, layout, COUNTS, eval_slices=[0.5])[0]
    assert pair["fixed"].shape == (1, 8, 16)
    assert pair["spacing"].tolist() == [1.5, 1.5]


def test_a_volume_is_its_slices_prepared_as_in_training(tmp_path):
    write_sunnybrook(tmp_path)
    heart = read_sunnybrook(str(tmp_path))["SCD0000201"]
    volume = VolumePairs([heart], GRID)[0]
    for i, k in enumerate(heart.slices):
        single = GRID(replace(heart.ed, slice=k), replace(heart.es, slice=k))
        for key in ("fixed", "moving", "fixed_labels", "moving_labels"):
            assert torch.equal(volume[key][..., i], single[key])
    assert volume["spacing"].tolist() == [1.5, 1.5, 12.0]  # slices 1, 2 and 4, 8 mm apart
    assert volume["name"] == "SCD0000201-ED_SCD0000201-ES"


def test_labels_are_kept_where_every_structure_overlaps():
    fixed = torch.zeros(1, 4, 4, 4, dtype=torch.int16)
    fixed[:, 0, :, :], fixed[:, 1, :, :] = 1, 2
    moving = fixed.clone()
    moving[:, 1, :, 1] = 0  # lacks one
    moving[:, :2, :, 2] = moving[:, :2, :, 2].flip(1)  # has both, elsewhere
    moving[:, 1, 1:, 3] = 0  # a little of one is enough
    pair = keep_overlapping_labels({"fixed_labels": fixed, "moving_labels": moving})
    assert pair["fixed_labels"].flatten(0, 2).any(0).tolist() == [True, False, False, True]
    assert torch.equal(pair["fixed_labels"][..., 0], fixed[..., 0])
    assert torch.equal(pair["moving_labels"][..., 3], moving[..., 3])
    assert not pair["moving_labels"][..., 1:3].any()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "SCD0000201.json").write_text("{}"),
            r"SCD0000201.json: needs the frames 'ed'",
        ),
        (
            lambda root: (root / "SCD0000201.json").write_text("{"),
            r"SCD0000201.json: needs the frames 'ed'",
        ),
        (
            lambda root: (root / "SCD0000201.json").unlink(),
            r"SCD0000201.json: this file of subject SCD0000201 is missing",
        ),
        (
            lambda root: (root / "SCD0000101_es_label.nii.gz").unlink(),
            r"SCD0000101_es_label.nii.gz: this file .* is missing",
        ),
        (
            lambda root: (root / "SCD0000101_cine4d.nii.gz").write_bytes(b"x" * 500),
            r"SCD0000101_cine4d.nii.gz: .* cannot be read",
        ),
        (
            lambda root: save(root / "SCD0000101_cine4d.nii.gz", cine(1)[..., 0]),
            r"SCD0000101_cine4d.nii.gz: a cine has axes x, y, z and t",
        ),
    ],
)
def test_faults_of_a_cine_are_named(damage, message, tmp_path):
    write_sunnybrook(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        list_cardiac_pairs("train", str(tmp_path), listed, read_sunnybrook, COUNTS, any_phases=True)


def test_faults_of_acdc_are_named(tmp_path):
    write_acdc(tmp_path)
    info = tmp_path / "training" / "patient009" / "Info.cfg"
    info.write_text("ED: 1\nES: 4\n")
    with pytest.raises(UserError, match=r"patient009_frame04.nii.gz: this file .* is missing"):
        read_acdc(str(tmp_path))
    info.write_text("ED: one\nES: 4\n")
    with pytest.raises(UserError, match=r"patient009.Info.cfg: needs the lines 'ED: <frame>'"):
        read_acdc(str(tmp_path))


def test_phases_need_a_cine(tmp_path):
    write_ukbb(tmp_path)
    with pytest.raises(UserError, match="subject 001 has no cine; set any_phases=false"):
        list_cardiac_pairs(
            "train",
            str(tmp_path),
            listed,
            lambda root: find_cardiac_files(root, "{}/sa_ED.nii.gz", "{}/sa_ES.nii.gz"),
            COUNTS,
            any_phases=True,
        )


def test_a_2d_model_is_trained_on_slices_and_evaluated_on_volumes(tmp_path, composed):
    write_sunnybrook(tmp_path)
    cfg = composed("train", "data=cardiac", "model=voxelmorph", f"data.dataset.root={tmp_path}")
    cfg.data.dataset.prepare.shape = [16, 16]
    cfg.output_dir = str(tmp_path)
    cfg.module.name = "voxelmorph"
    module, data = instantiate_config(cfg.module), instantiate_config(cfg.data)
    batch = next(iter(data.train_dataloader()))
    assert module(batch).displacement.shape == (8, 2, 16, 16)
    case = next(iter(data.val_dataloader()))
    out = module(case)
    assert out.displacement.shape == (1, 3, 16, 16, 3)
    assert out.warped.shape == case["moving"].shape


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to cardiac_cine_sunnybrook")
@pytest.mark.parametrize(
    ("name", "expected"), [("SCD0000101", 0.8405), ("SCD0000201", 0.8417), ("SCD0000301", 0.8672)]
)
def test_cavities_of_sunnybrook_overlap_as_published_with_no_registration(name, expected, composed):
    cfg = composed("train", "data=cardiac")
    cfg.data.dataset.splits = {"train": [], "val": [name]}
    (pair,) = instantiate_config(cfg.data.dataset)("val")
    fixed, moving = (pair[f"{side}_labels"].numpy() for side in ("fixed", "moving"))
    assert dice(fixed, moving, moving) == {1: pytest.approx(expected, abs=1e-4)}


def test_the_distance_of_slices_is_in_millimetres(tmp_path):
    affine = np.diag([1500.0, 1500, 8000, 1])
    write_nifti(tmp_path / "a.nii", np.zeros((4, 5, 6)), affine, affine, unit=3)
    shape, spacing = read_header(tmp_path / "a.nii")
    assert shape == (4, 5, 6)
    np.testing.assert_allclose(spacing, [1.5, 1.5, 8])
