"""Stained sections: both published layouts, landmarks on their structures, and patches."""

import os

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from regnet_lab import ops
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.datasets.histology import (
    PixelCropOrPad,
    SectionPatches,
    find_sections,
    list_histology_pairs,
    normalize_stain,
)
from regnet_lab.errors import UserError

DATA = os.environ.get("REGNET_LAB_DATA")
SPLITS = {"train": ["lung*"], "val": ["rat*"], "test": ["tumour"]}
TISSUES = {"lung-1": ("He", "CD31", "Cc10"), "rat_2": ("He", "Cc10"), "tumour": ("He", "CD31")}
MARKS = np.array([[7, 30], [40, 9], [52, 33], [20, 18]])  # x, y of dark dots


def listed(fixed, moving):
    return fixed, moving


def picture(width, height, marks, seed=0):
    """(height, width, 3) of a bright slide with faint texture and dark discs at the marks."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = rng.integers(225, 250, (height, width, 3))
    for mx, my in marks:
        image[(x - mx) ** 2 + (y - my) ** 2 <= 4] = (120, 30, 90)
    return image.astype(np.uint8)


def write_section(path, table, width, height, marks, scale=1):
    for file in (path, table):
        file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(picture(width, height, marks), isVector=True), path)
    rows = [f"{i},{x / scale:g},{y / scale:g}" for i, (x, y) in enumerate(marks, start=1)]
    table.write_text("\n".join([" ,X,Y", *rows]) + "\n")


def write_cima(root, scale=1, ending=""):
    """Landmarks beside the images, which differ in size."""
    for tissue, stains in TISSUES.items():
        for i, stain in enumerate(stains):
            path = root / tissue / f"{stain}.jpg"
            table = path.with_name(f"{stain}{ending}.csv")
            write_section(path, table, 60 + 3 * i, 40 + 2 * i, MARKS + i, scale)


def write_anhir(root):
    """Images and landmarks in two trees, with a folder that says the scale."""
    for tissue, stains in TISSUES.items():
        for i, stain in enumerate(stains):
            inner = f"{tissue}/scale-{5 * (1 + len(tissue) % 2)}pc/{stain}"
            files = (root / "images" / f"{inner}.jpg", root / "landmarks" / f"{inner}.csv")
            write_section(*files, 60, 40, MARKS + i)


ANHIR = {"image": "images/{tissue}/*/{stain}.jpg", "landmarks": "landmarks/{tissue}/*/{stain}.csv"}


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_cima, {}),
        (
            lambda root: write_cima(root, 0.1, "_scale50pc"),
            {"landmark_scales": dict.fromkeys(TISSUES, 0.1)},
        ),
        (write_anhir, ANHIR),
    ],
)
def test_every_two_stains_of_a_tissue_are_paired_and_no_tissue_is_in_two_splits(
    write, options, tmp_path
):
    write(tmp_path)
    lists = {
        s: list_histology_pairs(s, str(tmp_path), listed, SPLITS, **options).case_pairs
        for s in SPLITS
    }
    assert [len(pairs) for pairs in lists.values()] == [6, 1, 1]
    tissues = [{c.name.split("-")[0] for p in pairs for c in p} for pairs in lists.values()]
    assert tissues == [{"lung"}, {"rat_2"}, {"tumour"}]
    assert all(f.image != m.image for pairs in lists.values() for f, m in pairs)
    assert {c.points.path.exists() for pairs in lists.values() for p in pairs for c in p} == {True}


@pytest.mark.parametrize("spacing", [None, 2])
@pytest.mark.parametrize("scale", [1, 0.1])
def test_landmarks_lie_on_what_they_mark_in_images_of_different_size(spacing, scale, tmp_path):
    write_cima(tmp_path, scale)
    shape = [72, 48] if spacing is None else [36, 24]
    scales = dict.fromkeys(TISSUES, scale)
    grid = PixelCropOrPad(shape, spacing, intensity=normalize_stain)
    for pair in list_histology_pairs("train", str(tmp_path), grid, SPLITS, landmark_scales=scales):
        assert pair["spacing"].tolist() == [spacing or 1.0] * 2
        for side in ("fixed", "moving"):
            image, points = pair[side], pair[f"{side}_points"]
            assert image.shape == (1, *shape)
            x = ops.identity_grid(shape, image)[0]
            for point in points:
                near = (x - point.view(2, 1, 1)).norm(dim=0) < 4 / (spacing or 1)
                weight = (image[0] - 0.5).clamp(min=0) * near
                centre = (x * weight).sum((1, 2)) / weight.sum()
                assert (centre - point).abs().max() < 0.51


def test_sections_without_landmarks_are_pairs_too(tmp_path):
    write_cima(tmp_path)
    (tmp_path / "rat_2" / "He.csv").unlink()
    pair = list_histology_pairs("val", str(tmp_path), PixelCropOrPad([64, 48]), SPLITS)[0]
    assert len({"fixed_points", "moving_points"} & pair.keys()) == 1


def test_stained_tissue_is_bright_and_the_slide_is_dark():
    image = np.full((20, 30), 240, np.float32)
    image[5:10, 5:15] = np.linspace(40, 140, 50).reshape(5, 10)
    result = normalize_stain(image)
    assert result[0, 0] == 0
    assert result[5, 5] == 1
    assert (np.diff(result[5, 5:15]) <= 0).all()
    assert result[9, 14] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (None, {"image": "{tissue}/{stain}.png"}, r"no section \{tissue\}/\{stain\}.png"),
        (None, {"landmark_scales": {"lung": 0.1}}, "no tissue 'lung', only lung-1, rat_2, tumour"),
        (None, {"landmark_columns": ("x", "y")}, r"\.csv: there is no column 'x'"),
        ("lung-1/He_scale50pc.csv", {}, r"He.csv and .*He_scale50pc.csv both fit section He"),
    ],
)
def test_faults_of_a_folder_are_named(damage, options, message, tmp_path):
    write_cima(tmp_path)
    if damage:
        (tmp_path / damage).touch()
    with pytest.raises(UserError, match=message):
        list_histology_pairs("train", str(tmp_path), PixelCropOrPad([64, 48]), SPLITS, **options)[0]


def test_one_section_at_two_scales_is_ambiguous(tmp_path):
    for scale in ("scale-5pc", "scale-10pc"):
        (tmp_path / "lung" / scale).mkdir(parents=True)
        (tmp_path / "lung" / scale / "He.jpg").touch()
    with pytest.raises(UserError, match=r"are the same section: narrow image"):
        find_sections(str(tmp_path), "{tissue}/*/{stain}.jpg")
    sections = find_sections(str(tmp_path), "{tissue}/scale-5pc/{stain}.jpg")
    assert sections == {"lung": {"He": tmp_path / "lung" / "scale-5pc" / "He.jpg"}}


def patches(root, split="train", size=(12, 10), **options):
    splits = {"train": ["?.npy"], "val": ["held/*"]}
    return SectionPatches(
        split, str(root), "**/*.npy", size, splits, intensity=lambda a: a, **options
    )


def write_ramps(root, shape=(40, 30)):
    """Every voxel says where it is and in which image."""
    (root / "held").mkdir()
    for n, name in enumerate(("a.npy", "b.npy", "held/c.npy")):
        np.save(root / name, np.arange(np.prod(shape)).reshape(shape) + 1e5 * n)


def where(patch, shape):
    number, place = divmod(int(patch.flatten()[0]), 100_000)
    return number, np.array(np.unravel_index(place, shape))


@pytest.mark.parametrize(("shape", "size"), [((40, 30), (12, 10)), ((16, 18, 14), (5, 7, 6))])
def test_a_patch_is_cut_from_its_image_inside_the_margin(shape, size, tmp_path):
    write_ramps(tmp_path, shape)
    data = patches(tmp_path, size=size, margin=2, patches_per_image=30)
    starts = []
    for index in range(len(data)):
        patch = data[index]["moving"]
        number, start = where(patch, shape)
        assert number == index % 2
        box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        whole = np.load(tmp_path / ("a.npy", "b.npy")[number])[box]
        np.testing.assert_array_equal(patch[0], whole)
        starts.append(start)
    room = np.array(shape) - size - 4
    assert len(data) == 60
    assert np.min(starts, 0).tolist() == [2] * len(shape)
    assert (np.max(starts, 0) - 2 <= room).all()
    assert (np.max(starts, 0) - 2 >= 0.8 * room).all()


def test_patches_follow_from_seed_split_and_index_alone(tmp_path):
    write_ramps(tmp_path)
    first, again = patches(tmp_path), patches(tmp_path)
    assert again[7]["name"] == first[7]["name"] == f"{tmp_path.name}-b-00007"
    assert torch.equal(again[7]["fixed"], first[7]["fixed"])
    assert torch.equal(first[7]["fixed"], first[7]["moving"])
    changed = [
        not torch.equal(patches(tmp_path, seed=1)[i]["fixed"], first[i]["fixed"]) for i in range(9)
    ]
    assert sum(changed) >= 8
    assert len({where(first[i]["fixed"], (40, 30))[1].tobytes() for i in range(40)}) > 30


def test_patches_for_validation_come_from_images_that_are_held_out(tmp_path):
    write_ramps(tmp_path)
    train, val = patches(tmp_path), patches(tmp_path, "val", patches_per_image=3)
    assert len(val) == 3
    assert {where(val[i]["fixed"], (40, 30))[0] for i in range(3)} == {2}
    assert {where(train[i]["fixed"], (40, 30))[0] for i in range(40)} == {0, 1}
    splits = {"train": ["*.npy"], "val": ["held/*"]}
    with pytest.raises(UserError, match=r"c\.npy is in training and in validation or test"):
        SectionPatches("train", str(tmp_path), "**/*.npy", (12, 10), splits)


def test_patches_without_tissue_are_drawn_again(tmp_path):
    image = np.zeros((60, 60), np.float32)
    image[:, 40:] = np.random.default_rng(0).random((60, 20))
    for name in ("a", "b", "c"):
        np.save(tmp_path / f"{name}.npy", image)
    splits = {"train": 2, "val": 1}
    data, without_redraw = (
        SectionPatches(
            "train", str(tmp_path), "*.npy", (8, 8), splits, min_std=c, intensity=lambda a: a
        )
        for c in (0.1, 0)
    )
    assert all(data[i]["fixed"].std() >= 0.1 for i in range(40))
    assert sum(float(without_redraw[i]["fixed"].std()) == 0 for i in range(40)) > 10


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 31), r"no patch \[12, 31\] fits into \[40, 30\]"),
        ((4, 4, 4), r"no patch \[4, 4, 4\] fits into \[40, 30\]"),
    ],
)
def test_a_patch_too_large_is_named(size, message, tmp_path):
    write_ramps(tmp_path)
    with pytest.raises(UserError, match=message):
        patches(tmp_path, size=size)[0]
    with pytest.raises(UserError, match=r"there is no image \*.tif"):
        SectionPatches("train", str(tmp_path), "*.tif", size)


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to histology")
def test_real_sections_are_20_to_86_pixels_apart_and_differ_where_they_should(composed):
    cfg = composed("train", "data=histology")
    cfg.data.dataset.splits = {"train": ["*"], "val": []}
    data = instantiate_config(cfg.data).make_dataset("train")
    apart = {}
    for pair in data:
        offset = (pair["fixed_points"] - pair["moving_points"]) * pair["spacing"]
        apart[pair["name"]] = float(offset.norm(dim=1).mean())
        assert pair["fixed"].shape == (1, 448, 368)
    assert len(apart) == 8
    assert 19 < min(apart.values()) < 20.5
    assert 80 < max(apart.values()) < 87


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to histology")
def test_real_patches_become_pairs_with_a_known_displacement(composed):
    cfg = composed("train", "data=histology_patches")
    cfg.data.dataset.images.patch_size = [64, 64]
    batch = next(iter(instantiate_config(cfg.data).val_dataloader()))
    warped = ops.warp(batch["moving"], batch["displacement"])
    assert batch["fixed"].shape == (1, 1, 64, 64)
    assert (warped - batch["fixed"]).abs().max() < 1e-4
    assert batch["displacement"].abs().max() > 2
