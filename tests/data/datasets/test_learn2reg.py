"""Learn2Reg 2021 and later: small folders with a dataset.json in the published form."""

import json

import nibabel
import numpy as np
import pytest
import torch

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets.learn2reg import list_learn2reg_pairs
from regnet_lab.data.preprocessing.grids import CropOrPad
from regnet_lab.errors import UserError

SHAPE = (12, 14, 10)
POINTS = np.array([[2.0, 3.25, 4.0], [9.5, 10.0, 7.0]])


def listed(fixed, moving):
    return fixed, moving


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])), path)


def write_files(root, image, also=(), shape=SHAPE):
    rng = np.random.default_rng(sum(map(ord, image)))
    save(root / f"imagesTr/{image}.nii.gz", rng.integers(-1000, 1000, shape).astype(np.int16))
    for annotation, values in (("label", 5), ("mask", 2)):
        if annotation in also:
            array = rng.integers(0, values, shape).astype(np.uint8)
            save(root / f"{annotation}sTr/{image}.nii.gz", array)
    for annotation in set(also) - {"label", "mask"}:
        path = root / f"{annotation}Tr/{image}.csv"
        path.parent.mkdir(exist_ok=True)
        np.savetxt(path, POINTS + int(image[-4:]), delimiter=",", fmt="%.3f")


def entry(image, also=()):
    folders = {"label": "labels", "mask": "masks"}
    return {"image": f"./imagesTr/{image}.nii.gz"} | {
        annotation: f"./{folders.get(annotation, annotation)}Tr/{image}.nii.gz"
        for annotation in also
    }


def pair(fixed, moving):
    return {"fixed": f"./imagesTr/{fixed}.nii.gz", "moving": f"./imagesTr/{moving}.nii.gz"}


def write_json(root, name, pairings, training, val, paired=(), direction=(0, 0), **more):
    content = {
        "name": name, "release": "1.1", "description": "", "licence": "", "reference": "",
        "pairings": pairings, "provided_data": {"0": ["image"]},
        "registration_direction": {"fixed": direction[0], "moving": direction[1]},
        "modality": {"0": "CT"}, "img_shift": {"fixed": "", "moving": ""}, "labels": {},
        "tensorImageSize": {"0": "3D"}, "tensorImageShape": {"0": list(SHAPE)},
        "numTraining": len(training), "numTest": 0, "training": training, "test": [],
        "numPairedTraining": len(paired), "training_paired_images": list(paired),
        "numPairedTest": 0, "test_paired_images": [],
        "numRegistration_val": len(val), "registration_val": list(val),
        "numRegistration_test": 0, "registration_test": [],
    } | more  # fmt: skip
    (root / f"{name}_dataset.json").write_text(json.dumps(content, indent=4))


def write_nlst(root, **more):
    """Paired: follow-up pairs of lung CT, masks and keypoints; patient 4 is held out."""
    also = ("mask", "keypoints")
    images = [f"NLST_{n:04d}_{m:04d}" for n in range(1, 5) for m in (0, 1)]
    for image in images:
        write_files(root, image, also)
    pairs = [pair(f"NLST_{n:04d}_0000", f"NLST_{n:04d}_0001") for n in range(1, 5)]
    training = [entry(image, also) for image in images]
    write_json(root, "NLST", "paired", training, pairs[3:], pairs, (0, 1), **more)


def write_oasis(root):
    """Unpaired: one image of each patient; the last three are for validation."""
    images = [f"OASIS_{n:04d}_0000" for n in range(1, 8)]
    for image in images:
        write_files(root, image, ("label",))
    val = [pair(images[4], images[5]), pair(images[5], images[6])]
    training = [entry(image, ("label",)) for image in images]
    write_json(root, "OASIS", "unpaired", training, val)


def write_mrct(root):
    """Hybrid: MR (fixed, 0) and CT (moving, 1) of patients 1 and 2, MR of 3, CT of 4 and 5."""
    images = ["AbdomenMRCT_0001_0000", "AbdomenMRCT_0001_0001", "AbdomenMRCT_0002_0000",
              "AbdomenMRCT_0002_0001", "AbdomenMRCT_0003_0000", "AbdomenMRCT_0004_0001",
              "AbdomenMRCT_0005_0001"]  # fmt: skip
    for image in images:
        write_files(root, image, ("label", "mask", "keypoints"))
    pairs = [pair(*images[:2]), pair(*images[2:4])]
    training = [entry(image, ("label",)) for image in images]
    shapes = {"0": list(SHAPE), "1": list(SHAPE)}
    write_json(
        root, "AbdomenMRCT", "hybrid", training, pairs[1:], pairs, (0, 1), tensorImageShape=shapes
    )


def write_cbct(root):
    """Paired: two follow-ups of one planning image, with keypoints in a folder for each."""
    training = []
    for n in range(3):
        kinds = {0: ("keypoints01", "keypoints02"), 1: ("keypoints01",), 2: ("keypoints02",)}
        for m, also in kinds.items():
            write_files(root, f"ThoraxCBCT_{n:04d}_{m:04d}", also)
            training.append(entry(f"ThoraxCBCT_{n:04d}_{m:04d}", also))
    pairs = [pair(f"ThoraxCBCT_{n:04d}_{m:04d}", f"ThoraxCBCT_{n:04d}_0000")
             for m in (1, 2) for n in range(3)]  # fmt: skip
    write_json(root, "ThoraxCBCT", "paired", training, [pairs[2], pairs[5]], pairs, (1, 0))


def names(pairs):
    return [(fixed.name, moving.name) for fixed, moving in pairs.case_pairs]


def short(pairs):
    return [tuple(name.split("_", 1)[1] for name in pair) for pair in names(pairs)]


def patients(pairs):
    return {name.rpartition("_")[0] for pair in names(pairs) for name in pair}


@pytest.mark.parametrize("write", [write_nlst, write_oasis, write_mrct, write_cbct])
def test_training_and_validation_share_no_patient(write, tmp_path):
    write(tmp_path)
    train, val, test = (
        list_learn2reg_pairs(split, tmp_path, listed) for split in ("train", "val", "test")
    )
    assert len(train)
    assert patients(train).isdisjoint(patients(val))
    assert names(val) == names(test)


def test_a_paired_release_lists_its_pairs_with_masks_and_points(tmp_path):
    write_nlst(tmp_path)
    train = list_learn2reg_pairs("train", tmp_path, listed)
    assert short(train) == [(f"{n:04d}_0000", f"{n:04d}_0001") for n in (1, 2, 3)]
    fixed, moving = train[0]
    assert fixed.mask == tmp_path / "masksTr/NLST_0001_0000.nii.gz"
    assert moving.points.path == tmp_path / "keypointsTr/NLST_0001_0001.csv"
    assert fixed.labels is None


def test_an_unpaired_release_combines_what_validation_leaves(tmp_path):
    write_oasis(tmp_path)
    train = short(list_learn2reg_pairs("train", tmp_path, listed))
    left = [f"{n:04d}_0000" for n in (1, 2, 3, 4)]
    assert sorted(train) == sorted((a, b) for a in left for b in left if a != b)
    val = list_learn2reg_pairs("val", tmp_path, listed)
    assert short(val) == [("0005_0000", "0006_0000"), ("0006_0000", "0007_0000")]
    assert val[0][0].labels == tmp_path / "labelsTr/OASIS_0005_0000.nii.gz"


def test_a_hybrid_release_has_both_and_combines_in_the_direction_of_registration(tmp_path):
    write_mrct(tmp_path)
    paired = [("0001_0000", "0001_0001")]
    combined = [("0001_0000", "0004_0001"), ("0001_0000", "0005_0001"), ("0003_0000", "0001_0001"),
                ("0003_0000", "0004_0001"), ("0003_0000", "0005_0001")]  # fmt: skip
    assert short(list_learn2reg_pairs("train", tmp_path, listed)) == paired + combined
    assert short(list_learn2reg_pairs("train", tmp_path, listed, pairings="paired")) == paired
    assert short(list_learn2reg_pairs("train", tmp_path, listed, pairings="unpaired")) == combined


def test_points_of_different_patients_are_not_taken_for_correspondences(tmp_path):
    write_mrct(tmp_path)
    train = list_learn2reg_pairs("train", tmp_path, listed)
    assert [fixed.points is not None for fixed, _ in train] == [True] + [False] * 5


def test_the_points_of_a_pair_come_from_the_folder_that_both_images_share(tmp_path):
    write_cbct(tmp_path)
    for fixed, moving in list_learn2reg_pairs("train", tmp_path, listed):
        folder = f"keypoints0{fixed.name[-1]}Tr"
        assert fixed.points.path == tmp_path / folder / f"{fixed.name}.csv"
        assert moving.points.path == tmp_path / folder / f"{moving.name}.csv"


def test_landmarks_that_only_lie_on_disk_come_before_keypoints(tmp_path):
    write_nlst(tmp_path)
    for m in (0, 1):
        write_files(tmp_path, f"NLST_0004_{m:04d}", ("landmarks",))
    order = ["keypoints", "landmarks"]
    kinds = {
        "landmarks": list_learn2reg_pairs("val", tmp_path, listed),
        "keypoints": list_learn2reg_pairs("val", tmp_path, listed, annotations=order),
    }
    for kind, val in kinds.items():
        assert val[0][0].points.path.parent.name == f"{kind}Tr"


def test_only_the_data_asked_for_are_used(tmp_path):
    write_mrct(tmp_path)
    fixed, _ = list_learn2reg_pairs("val", tmp_path, listed, annotations=["mask"])[0]
    assert fixed.mask is not None  # not named in the json, but in its folder
    assert fixed.labels is None
    assert fixed.points is None


@pytest.mark.parametrize("key", ["registration_test", "test_paired_images"])
def test_test_pairs_are_the_test_split_and_left_out_of_training(key, tmp_path):
    write_nlst(tmp_path, **{key: [pair("NLST_0003_0000", "NLST_0003_0001")]})
    assert short(list_learn2reg_pairs("test", tmp_path, listed)) == [("0003_0000", "0003_0001")]
    assert short(list_learn2reg_pairs("val", tmp_path, listed)) == [("0004_0000", "0004_0001")]
    assert len(list_learn2reg_pairs("train", tmp_path, listed)) == 2


def test_points_and_labels_are_read_in_voxels(tmp_path):
    write_mrct(tmp_path)
    read = list_learn2reg_pairs("val", tmp_path, CropOrPad([16, 14, 10]))[0]
    offset = np.array([2, 0, 0])
    assert np.allclose(read["fixed_points"], POINTS + offset)
    assert np.allclose(read["moving_points"], POINTS + 1 + offset)
    stored = nibabel.load(tmp_path / "labelsTr/AbdomenMRCT_0002_0000.nii.gz").get_fdata()
    assert np.array_equal(read["fixed_labels"][0, 2:14], stored)
    assert torch.allclose(read["spacing"], torch.tensor(1.5))


def edit(root, **changes):
    path = next(root.glob("*dataset.json"))
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda r: edit(r, registration_val=None), "NLST_dataset.json: the key 'registration_val'"),
        (lambda r: edit(r, pairings=None), "the key 'pairings' is missing"),
        (lambda r: edit(r, pairings="some"), "pairings='some' is unknown"),
        (lambda r: edit(r, training=None), "the key 'training' is missing"),
        (lambda r: edit(r, training=[{"img": "x"}]), "'training' needs the key 'image'"),
        (lambda r: edit(r, registration_val=[{"fix": "x"}]), "keys 'fixed' and 'moving'"),
        (lambda r: edit(r, pairings="unpaired", registration_direction={}), "as its 'fixed'"),
        (lambda r: edit(r, tensorImageShape={}), "'tensorImageShape' needs a list"),
        (lambda r: edit(r, tensorImageShape={"0": [12, 14]}), "NLST_0001_0000.nii.gz: its shape"),
        (lambda r: write_files(r, "NLST_0002_0001", shape=(5, 6, 7)), "NLST_0002_0001.nii.gz: its"),
        (lambda r: (r / "imagesTr/NLST_0002_0001.nii.gz").unlink(), "NLST_0002_0001.*is missing"),
        (lambda r: (r / "imagesTr/NLST_0002_0001.nii.gz").write_bytes(b"no"), "cannot be read"),
        (lambda r: next(r.glob("*.json")).write_text("{"), "is not valid json"),
        (lambda r: next(r.glob("*.json")).write_text("[]"), "must contain a json object"),
        (lambda r: next(r.glob("*.json")).unlink(), "holds 0 files"),
        (lambda r: (r / "dataset.json").write_text("{}"), "holds 2 files"),
    ],
)
def test_a_damaged_release_is_one_sentence(damage, sentence, tmp_path):
    write_nlst(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        list_learn2reg_pairs("train", tmp_path, listed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "NLST_0004_0001.csv.*missing"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00\x81"), "NLST_0004_0001.csv"),
        (lambda path: path.write_text("1,2\n3,4\n"), "gives 2 coordinates"),
    ],
)
def test_damaged_keypoints_are_named_when_they_are_read(damage, sentence, tmp_path):
    write_nlst(tmp_path)
    damage(tmp_path / "keypointsTr" / "NLST_0004_0001.csv")
    with pytest.raises(UserError, match=sentence):
        list_learn2reg_pairs("val", tmp_path, CropOrPad(SHAPE))[0]


def test_the_preset_lists_a_release(tmp_path, composed):
    (tmp_path / "OASIS").mkdir()
    write_oasis(tmp_path / "OASIS")
    cfg = composed("train", "data=learn2reg", f"data_root={tmp_path}")
    dataset = instantiate_config(cfg.data.dataset)
    assert [len(dataset(split=split)) for split in ("train", "val", "test")] == [12, 2, 2]


def test_unknown_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="'labels' is unknown"):
        list_learn2reg_pairs("val", tmp_path, listed, annotations=["labels"])
