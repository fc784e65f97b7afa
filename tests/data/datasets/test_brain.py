"""Brain data: small trees in the published form, what is listed and what is read."""

import os

import nibabel
import numpy as np
import pytest
import torch
import yaml

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets.brain import (
    find_subject_images,
    list_inter_subject_pairs,
    read_subject_table,
)
from regnet_lab.data.preprocessing.functional import list_group_labels, select_labels
from regnet_lab.data.splits import find_subjects, select_subjects
from regnet_lab.errors import UserError
from tests.helpers import CONF

SHAPE = (12, 14, 10)
LABELS = CONF / "data" / "labels"
DATA = os.environ.get("REGNET_LAB_DATA")
COUNTS = {"train": 3, "val": 2, "test": None}


def listed(fixed, moving):
    return fixed, moving


def save(path, shape=SHAPE, labels=None, kind=nibabel.Nifti1Image):
    """An image of noise, or a label map of the given values, that differs from file to file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(str(path))) % 2**32)
    array = rng.uniform(1, 900, shape) if labels is None else rng.choice([0, *labels], shape)
    array = array.astype(np.float32 if labels is None else np.int16)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(kind(array, np.eye(4)), path)


def write_camcan(root, folders=("",)):
    for folder in folders:
        for n in range(5 if folder == "" else 2):
            subject = root / folder / f"CC1{folder[:1]}{n}"
            save(subject / "T1_brain.nii.gz")
            save(subject / "T2_brain.nii.gz")
            save(subject / "T1_brain_MALPEM_tissues.nii.gz", labels=range(6))


def write_oasis(root):
    (root / "seg35_labels.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "seg35_labels.txt").write_text("1 Left-Cerebral-White-Matter\n")
    names = [f"OASIS_OAS1_{n:04d}_MR1" for n in (1, 2, 5, 9, 457)]
    (root / "subjects.txt").write_text("\n".join(names) + "\n")
    for name in names:
        save(root / name / "aligned_norm.nii.gz")
        save(root / name / "aligned_orig.nii.gz")
        save(root / name / "aligned_seg35.nii.gz", labels=range(36))
        save(root / name / "slice_norm.nii.gz", (12, 14, 1))
        save(root / name / "slice_seg24.nii.gz", (12, 14, 1), range(25))


def write_mindboggle(root, group="{}_volumes/"):
    for release in ("NKI-RS-22", "NKI-TRT-20", "OASIS-TRT-20"):
        for n in (1, 2):
            subject = root / group.format(release) / f"{release}-{n}"
            save(subject / "t1weighted_brain.MNI152.nii.gz")
            save(subject / "t1weighted.MNI152.nii.gz")
            save(subject / "labels.DKT31.manual.MNI152.nii.gz", labels=(1002, 1035, 2002))


def write_lpba40(root):
    for n in range(1, 6):
        stem = root / f"S{n:02d}" / f"S{n:02d}.delineation"
        for kind, labels in (("skullstripped", None), ("structure.label", (21, 182))):
            path = stem.with_name(f"{stem.name}.{kind}.img")
            save(path, (*SHAPE, 1), labels, nibabel.Spm2AnalyzeImage)


def write_faim(root):
    for n in (0, 19, 38, 79, 80, 99):
        save(root / "images" / f"{n:03d}.npy")
        save(root / "labels" / f"{n:03d}.npy", labels=(1002, 2002))


def write_slices(root, count=5):
    for n in range(1, count + 1):
        save(root / f"img_{n:02d}.nii.gz", (12, 14))
        save(root / f"dkt_{n:02d}.nii.gz", (12, 14), (4, 1005))


def write_table(root, rows=None):
    for n in range(5):
        save(root / "scans" / f"s{n}.nii")
        save(root / "scans" / f"s{n}_labels.nii", labels=(1, 2))
    rows = rows or [f"p{n},scans/s{n}.nii,scans/s{n}_labels.nii" for n in range(5)]
    (root / "subjects.csv").write_text("\n".join(["subject,image,labels", *rows]) + "\n")


LAYOUTS = {
    "brain": write_oasis,
    "brain_camcan": write_camcan,
    "brain_camcan_t1t2": write_camcan,
    "brain_mindboggle": write_mindboggle,
    "brain_lpba40": write_lpba40,
    "brain_faim": write_faim,
    "brain_oasis2d": write_oasis,
    "brain2d": write_slices,
    "brain_table": write_table,
}
NAMED = ("brain_mindboggle", "brain_faim")  # whose splits are names


def subjects_of(pairs):
    return {case.name.removesuffix("-moving") for pair in pairs.case_pairs for case in pair}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_listed_and_read_by_its_yaml(name, tmp_path, composed):
    LAYOUTS[name](tmp_path)
    counts = [f"data.dataset.splits.{k}={'null' if v is None else v}" for k, v in COUNTS.items()]
    cfg = composed(
        "train", f"data={name}", f"data.dataset.root={tmp_path}", *([] if name in NAMED else counts)
    )
    shape = [8, 16] if cfg.ndim == 2 else [8, 16, 10]
    cfg.data.dataset.prepare.update(shape=shape, spacing=None)
    data = instantiate_config(cfg.data)
    train, val, test = (data.make_dataset(split) for split in ("train", "val", "test"))
    people = len(subjects_of(train))
    assert len(train) == people * (people - 1)
    assert len(val) == 2
    assert subjects_of(train).isdisjoint(subjects_of(val) | subjects_of(test))
    pair = val[0]
    assert set(pair) == {"name", "spacing"} | {
        f"{side}{key}" for side in ("fixed", "moving") for key in ("", "_labels")
    }
    assert pair["fixed"].shape == pair["moving_labels"].shape == (1, *shape)
    assert not torch.equal(pair["fixed"], pair["moving"])
    assert pair["fixed_labels"].max() > 1


def test_validation_moves_the_next_subject_and_training_every_other(tmp_path):
    write_slices(tmp_path, 6)
    made = {
        split: list_inter_subject_pairs(
            split,
            str(tmp_path),
            listed,
            lambda root: find_subject_images(root, "img_{}.nii.gz", "dkt_{}.nii.gz"),
            splits={"train": 3, "val": 3, "test": 0},
        )
        for split in ("train", "val", "test")
    }
    names = {split: [(f.name, m.name) for f, m in data.case_pairs] for split, data in made.items()}
    assert sorted(names["train"]) == [
        (a, b) for a in ("01", "02", "03") for b in ("01", "02", "03") if a != b
    ]
    assert names["val"] == names["test"] == [("04", "05"), ("05", "06"), ("06", "04")]
    assert made["val"].case_pairs[0][0].labels == tmp_path / "dkt_04.nii.gz"


def test_t2_moves_with_the_labels_of_its_own_subject(tmp_path, composed):
    write_camcan(tmp_path)
    cfg = composed("train", "data=brain_camcan_t1t2", f"data.dataset.root={tmp_path}")
    cfg.data.dataset.splits = COUNTS
    pairs = instantiate_config(cfg.data.dataset)("train").case_pairs
    assert all(f.image.name == "T1_brain.nii.gz" for f, _ in pairs)
    assert all(m.image.name == "T2_brain.nii.gz" for _, m in pairs)
    assert all(m.labels.parent == m.image.parent for _, m in pairs)
    assert all(f.image.parent != m.image.parent and f.name != m.name for f, m in pairs)


@pytest.mark.parametrize("atlas", ["02", "05", "file"])
def test_an_atlas_is_always_fixed_and_never_moved(atlas, tmp_path):
    write_slices(tmp_path)
    save(tmp_path / "mean.nii.gz", (12, 14))
    save(tmp_path / "mean_labels.nii.gz", (12, 14), (4, 1005))
    options = (
        {
            "atlas": str(tmp_path / "mean.nii.gz"),
            "atlas_labels": str(tmp_path / "mean_labels.nii.gz"),
        }
        if atlas == "file"
        else {"atlas": atlas}
    )

    def layout(root):
        return find_subject_images(root, "img_{}.nii.gz", "dkt_{}.nii.gz")

    moved = {}
    for split in ("train", "val"):
        pairs = list_inter_subject_pairs(
            split, str(tmp_path), listed, layout, COUNTS, **options
        ).case_pairs
        assert {f.name for f, _ in pairs} == {"atlas" if atlas == "file" else atlas}
        assert all(f.labels.is_file() for f, _ in pairs)
        moved[split] = [m.name for _, m in pairs]
    everyone = {"train": ["01", "02", "03"], "val": ["04", "05"]}
    assert moved == {k: [n for n in names if n != atlas] for k, names in everyone.items()}


def test_a_slice_of_a_volume_is_that_slice(tmp_path, composed):
    write_oasis(tmp_path)
    cfg = composed(
        "train", "data=brain", f"data.dataset.root={tmp_path}", "ndim=2", "data.dataset.slice=0.75"
    )
    cfg.data.dataset.splits = COUNTS
    cfg.data.dataset.prepare.shape = SHAPE[:2]
    pair = instantiate_config(cfg.data.dataset)("val")[0]
    volume = np.asarray(nibabel.load(tmp_path / "OASIS_OAS1_0009_MR1/aligned_seg35.nii.gz").dataobj)
    assert pair["fixed_labels"][0].tolist() == volume[:, :, 7].tolist()


@pytest.mark.parametrize("group", ["{}_volumes/", ""])
def test_subjects_may_lie_in_folders_of_groups(group, tmp_path):
    write_mindboggle(tmp_path, group)
    subjects = find_subjects(tmp_path, "{}/t1weighted_brain.MNI152.nii.gz")
    assert list(subjects) == [
        group.format(g) + f"{g}-{n}"
        for g in ("NKI-RS-22", "NKI-TRT-20", "OASIS-TRT-20")
        for n in (1, 2)
    ]
    assert all(
        "/" not in s.fixed.name
        for s in find_subject_images(tmp_path, "{}/t1weighted_brain.MNI152.nii.gz").values()
    )


def test_subjects_in_folders_of_splits_are_split_by_them(tmp_path, composed):
    write_camcan(tmp_path, ("train", "val", "test"))
    overrides = [f"data.dataset.splits.{split}=['{split}/*']" for split in ("train", "val", "test")]
    cfg = composed("train", "data=brain_camcan", f"data.dataset.root={tmp_path}", *overrides)
    for split in ("train", "val", "test"):
        pairs = instantiate_config(cfg.data.dataset)(split).case_pairs
        assert {case.image.parent.parent.name for pair in pairs for case in pair} == {split}
        assert len(pairs) == 2


TEN = [f"s{n}" for n in range(10)]


@pytest.mark.parametrize(
    ("splits", "train", "val", "test"),
    [
        ({"train": 0.8, "val": 0.1, "test": 0.1}, TEN[:8], TEN[8:9], TEN[9:]),
        ({"train": 0.25, "val": 0.1, "test": 0.1}, TEN[:2], TEN[8:9], TEN[9:]),
        ({"train": 7, "val": 3, "test": 0}, TEN[:7], TEN[7:], TEN[7:]),
        ({"train": 7, "val": 3}, TEN[:7], TEN[7:], TEN[7:]),
        ({"train": ["s[0-3]", "s9"], "val": ["s5"]}, [*TEN[:4], "s9"], ["s5"], ["s5"]),
        ({"train": "train.txt", "val": ["s5"], "test": ["s6"]}, ["s1", "s2"], ["s5"], ["s6"]),
    ],
)
def test_splits_by_number_share_name_and_text_file(splits, train, val, test, tmp_path):
    (tmp_path / "train.txt").write_text("s2\ns1\n")
    made = [select_subjects(split, TEN, splits, tmp_path) for split in ("train", "val", "test")]
    assert made == [train, val, test]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 9, "val": 1, "test": 1}, "asks for 9 [+] 1 [+] 1 subjects of 10"),
        (
            {"train": ["s1", "s2"], "val": ["s[23]"]},
            "subject s2 is in training and in validation or test",
        ),
        (
            {"train": ["s1"], "val": ["s3"], "test": ["s1"]},
            "subject s1 is in training and in validation or test",
        ),
        ({"train": ["s1"], "val": ["t3"]}, "'t3' matches no subject; there are s0 to s9"),
        ({"train": ["s1"], "val": 2}, "either numbers or names for all"),
        ({"train": 5}, "give train, val and test"),
        ({"train": 5, "valid": 2, "val": 1}, "give train, val and test"),
        ({"train": "gone.txt", "val": ["s1"]}, "gone.txt: this file, named in splits, is missing"),
    ],
)
def test_splits_that_do_not_fit_are_named(splits, message, tmp_path):
    with pytest.raises(UserError, match=message):
        select_subjects("train", TEN, splits, tmp_path)


def test_missing_files_and_subjects_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no file in this folder is named \{\}/T1.nii.gz"):
        find_subject_images(str(tmp_path), "{}/T1.nii.gz")
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        find_subject_images(str(tmp_path / "nowhere"), "{}/T1.nii.gz")
    write_slices(tmp_path)
    (tmp_path / "dkt_03.nii.gz").unlink()
    with pytest.raises(UserError, match=r"dkt_03.nii.gz: this file of subject 03 is missing"):
        find_subject_images(str(tmp_path), "img_{}.nii.gz", "dkt_{}.nii.gz")
    with pytest.raises(UserError, match="atlas: 99 is neither a subject nor a file"):
        list_inter_subject_pairs(
            "val",
            str(tmp_path),
            listed,
            lambda r: find_subject_images(r, "img_{}.nii.gz"),
            COUNTS,
            "99",
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["p1,scans/s1.nii,", "p1,scans/s2.nii,"], "subject p1 is listed twice"),
        (["p1,scans/s1.nii,", "p7,scans/s7.nii,"], "s7.nii: this file of subject p7 is missing"),
    ],
)
def test_faults_of_a_table_are_named(rows, message, tmp_path):
    write_table(tmp_path, rows)
    with pytest.raises(UserError, match=message):
        read_subject_table(str(tmp_path))


def test_a_table_without_a_needed_column_or_none_at_all_is_named(tmp_path):
    with pytest.raises(UserError, match=r"subjects.csv: this file is missing"):
        read_subject_table(str(tmp_path))
    (tmp_path / "subjects.csv").write_text("subject,picture\np1,a.nii\n")
    with pytest.raises(UserError, match=r"subjects.csv: has no column 'image'"):
        read_subject_table(str(tmp_path))


def test_a_table_may_leave_labels_out_and_name_a_moving_image(tmp_path):
    write_table(tmp_path, ["p1,scans/s1.nii,scans/s1_labels.nii", "p2,scans/s2.nii,"])
    subjects = read_subject_table(str(tmp_path))
    assert [s.fixed.labels and s.fixed.labels.name for s in subjects.values()] == [
        "s1_labels.nii",
        None,
    ]
    (tmp_path / "subjects.csv").write_text(
        "subject,image,moving\np1,scans/s1.nii,scans/s3.nii\np2,scans/s2.nii,scans/s4.nii\n"
    )
    subjects = read_subject_table(str(tmp_path))
    assert [s.moving.image.name for s in subjects.values()] == ["s3.nii", "s4.nii"]


@pytest.mark.parametrize("path", sorted(LABELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_label_tables_give_every_label_to_one_group(path):
    groups = yaml.safe_load(path.read_text())
    values = np.concatenate([list_group_labels(group) for group in groups.values()])
    assert len(values) == len(set(values)) > 20
    labels = np.concatenate([[0, 9999], values]).reshape(1, -1)
    selected = select_labels(labels, groups)
    assert set(np.unique(selected)) == {0, *groups}
    assert (selected[0, :2] == 0).all()


def test_regions_are_chosen_by_name(composed):
    cfg = composed(
        "train", "data=brain_mindboggle", "data/labels@data.dataset.prepare.labels=dkt31_regions"
    )
    assert list(cfg.data.dataset.prepare.labels) == [1, 2, 3, 4, 5]
    assert 1028 in cfg.data.dataset.prepare.labels[1].labels
    assert 2035 in cfg.data.dataset.prepare.labels[5].labels


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to brain2d_trt20")
def test_brain2d_lists_ten_training_and_four_validation_subjects(composed):
    data = instantiate_config(composed("train", "data=brain2d").data)
    assert len(data.make_dataset("train")) == 90
    assert [pair["name"] for pair in data.make_dataset("val")] == [
        "11_12",
        "12_13",
        "13_14",
        "14_11",
    ]
    pair = data.make_dataset("val")[0]
    assert pair["fixed"].shape == (1, 160, 192)
    assert pair["fixed_labels"].max() == 2035
