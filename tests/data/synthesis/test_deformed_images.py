import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.utils.data import DataLoader

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.data.preprocessing.grids import ResampleToFixed
from regnet_lab.data.synthesis.deformed_images import DeformedImages, list_images, make_self_pair
from regnet_lab.data.synthesis.displacements.affine_nonrigid import WhiteNoise
from regnet_lab.data.synthesis.displacements.gaussian import HighFrequency, LowFrequency
from regnet_lab.errors import UserError

shapes = pytest.mark.parametrize("shape", [(30, 26), (18, 20, 22)])
FIELDS = LowFrequency(max_deform=2.5, sigma=4.0, border=3.0)
SPLITS = ("train", "val", "test")


def make_image(shape, number, **more):
    image = torch.from_numpy(np.random.default_rng(number).random((1, *shape), np.float32))
    return {**make_self_pair(image, f"picture{number}", spacing_of(shape)), **more}


def spacing_of(shape):
    return [1.0, 0.7, 1.5][: len(shape)]


def make_images(shape, count=3, **more):
    def images(split):
        first = 100 * SPLITS.index(split)
        return [make_image(shape, first + i, **more) for i in range(count)]

    return images


def make_slab_labels(shape):
    """Labels 1, 2, ... in slabs, with a frame of background."""
    labels = torch.zeros(1, *shape, dtype=torch.int16)
    inner = (0, *[slice(3, -3)] * len(shape))
    labels[inner] = (torch.arange(shape[-1] - 6) // 5 + 1).short()
    return labels


def make_deformed_images(shape, split="train", fields=FIELDS, images=None, **options):
    return DeformedImages(split, images or make_images(shape), fields, **options)


def warp_with_scipy(volume, u, order):
    coordinates = np.indices(u.shape[1:]) + u.numpy()
    mode = "nearest" if order else "grid-constant"
    return map_coordinates(volume[0].double().numpy(), coordinates, order=order, mode=mode)


@shapes
def test_fixed_image_is_the_moving_image_at_x_plus_u(shape):
    for pair in (make_deformed_images(shape)[i] for i in range(3)):
        expected = warp_with_scipy(pair["moving"], pair["displacement"], order=1)
        np.testing.assert_allclose(pair["fixed"][0], expected, atol=2e-4)
        assert pair["displacement"].shape == (len(shape), *shape)
        opposite = warp_with_scipy(pair["moving"], -pair["displacement"], order=1)
        assert np.abs(pair["fixed"][0].numpy() - opposite).max() > 0.2


@shapes
def test_field_is_drawn_for_the_spacing_of_its_image(shape):
    pair = make_deformed_images(shape)[0]
    assert pair["spacing"].tolist() == pytest.approx(spacing_of(shape))
    largest = pair["displacement"].flatten(1).abs().amax(1) * pair["spacing"]
    assert (largest > 1.8).all()
    assert (largest <= 2.5).all()


@shapes
def test_noise_is_added_only_to_the_deformed_image(shape):
    clean, noisy = make_deformed_images(shape)[1], make_deformed_images(shape, noise=0.05)[1]
    assert torch.equal(clean["displacement"], noisy["displacement"])
    assert torch.equal(clean["moving"], noisy["moving"])
    assert (noisy["fixed"] - clean["fixed"]).std() == pytest.approx(0.05, rel=0.1)


@shapes
def test_labels_masks_and_landmarks_follow_the_displacement(shape):
    mask = torch.ones(1, *shape)
    images = make_images(shape, moving_labels=make_slab_labels(shape), moving_mask=mask)
    pair = make_deformed_images(shape, images=images, num_points=40)[0]
    u = pair["displacement"]
    labels = warp_with_scipy(pair["moving_labels"], u, order=0)
    assert (pair["fixed_labels"][0].numpy() == labels).mean() > 0.999  # ties of rounding
    assert pair["fixed_labels"].dtype == torch.int16
    assert not torch.equal(pair["fixed_labels"], pair["moving_labels"])
    coordinates = np.indices(shape) + u.numpy()
    limits = np.array(shape).reshape(-1, *[1] * len(shape)) - 0.5
    inside = ((coordinates >= -0.5) & (coordinates < limits)).all(0)
    np.testing.assert_array_equal(pair["fixed_mask"][0], inside)
    fixed, moving = pair["fixed_points"], pair["moving_points"]
    at = fixed.long().T.numpy()
    assert fixed.shape == (40, len(shape))
    np.testing.assert_allclose(moving.T, at + u.numpy()[:, *at], atol=1e-5)
    moving_voxels = np.floor(moving.T.numpy() + 0.5).astype(int)
    fixed_labels, moving_labels = (
        pair["fixed_labels"][0].numpy()[*at],
        pair["moving_labels"][0].numpy()[*moving_voxels],
    )
    np.testing.assert_array_equal(fixed_labels, moving_labels)
    assert len(set(fixed_labels)) > 1


@shapes
def test_images_without_labels_have_no_landmarks(shape):
    pair = make_deformed_images(shape, num_points=40)[0]
    assert not {"fixed_points", "fixed_labels", "fixed_mask"} & pair.keys()
    empty = torch.zeros(1, *shape, dtype=torch.int16)
    images = make_images(shape, moving_labels=empty)
    assert "fixed_points" not in make_deformed_images(shape, images=images, num_points=4)[0]


@shapes
def test_the_displacement_is_inverted_if_the_original_is_fixed(shape):
    deformed_fixed, original_fixed = (
        make_deformed_images(shape)[0],
        make_deformed_images(shape, deformed_is_fixed=False)[0],
    )
    assert torch.equal(original_fixed["fixed"], deformed_fixed["moving"])
    assert torch.equal(original_fixed["moving"], deformed_fixed["fixed"])
    u, inverse = deformed_fixed["displacement"], original_fixed["displacement"]
    total = inverse.numpy() + np.stack([warp_with_scipy(c[None], inverse, order=1) for c in u])
    assert np.abs(total).max() < 1e-2
    assert inverse.abs().max() > 1


@shapes
def test_displacement_noise_changes_the_image_but_not_the_true_displacement(shape):
    clean, disturbed = (
        make_deformed_images(shape)[0],
        make_deformed_images(shape, displacement_noise=WhiteNoise(0.3))[0],
    )
    assert torch.equal(clean["displacement"], disturbed["displacement"])
    assert (clean["fixed"] - disturbed["fixed"]).abs().mean() > 0.01


@shapes
def test_pairs_depend_only_on_seed_split_and_index(shape):
    def pairs(split="train", seed=0, order=(0, 1, 2)):
        data = make_deformed_images(shape, split, seed=seed, noise=0.01, num_pairs=3)
        items = {i: data[i] for i in order}
        return [items[i] for i in range(3)]

    first, again = pairs(), pairs(order=(2, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert a["name"] == b["name"]
        assert all(torch.equal(a[key], b[key]) for key in a if key != "name")
    all_pairs = [*first, *pairs("val"), *pairs("test"), *pairs(seed=1)]
    for i, a in enumerate(all_pairs):
        for b in all_pairs[:i]:
            assert not torch.allclose(a["displacement"], b["displacement"], atol=0.2)


def test_every_image_of_a_split_is_used_equally_often_and_none_of_another():
    names = {
        split: [
            pair["name"].split("-")[0]
            for pair in make_deformed_images((20, 20), split, num_pairs=9)
        ]
        for split in SPLITS
    }
    for split, used in names.items():
        expected = {f"picture{100 * SPLITS.index(split) + i}" for i in range(3)}
        assert {name: used.count(name) for name in used} == dict.fromkeys(expected, 3)


def test_sizes_may_differ_between_splits_and_pairs_collate():
    size = {"train": 7, "val": 2, "test": 3}
    assert [len(make_deformed_images((20, 20), split, num_pairs=size)) for split in SPLITS] == [
        7,
        2,
        3,
    ]
    batch = next(iter(DataLoader(make_deformed_images((20, 22), num_pairs=2), batch_size=2)))
    assert batch["displacement"].shape == (2, 2, 20, 22)
    assert batch["name"][1].endswith("-train-00001")
    with pytest.raises(IndexError):
        make_deformed_images((20, 20), num_pairs=2)[2]


def test_invalid_images_and_settings_are_refused():
    with pytest.raises(UserError, match="split='training'"):
        make_deformed_images((20, 20), "training")
    with pytest.raises(UserError, match="no images to deform for 'val'"):
        make_deformed_images((20, 20), "val", images=make_images((20, 20), count=0))
    with pytest.raises(UserError, match="border=33 mm"):
        make_deformed_images((40, 40), fields=HighFrequency())[0]


@pytest.fixture
def folder(tmp_path):
    """Ten images with labels, 12 x 14 x 10 voxels of 1 x 2 x 1.5 mm."""
    rng = np.random.default_rng(0)
    for kind in ("scans", "labels"):
        (tmp_path / kind).mkdir()
        for number in range(10):
            array = rng.integers(0, 3, (12, 14, 10)).astype(np.int16)
            image = nibabel.Nifti1Image(array, np.diag([1, 2, 1.5, 1]))
            nibabel.save(image, tmp_path / kind / f"p{number}_{kind}.nii.gz")
    return tmp_path


def test_files_of_any_layout_are_divided_into_splits(folder):
    options = {
        "root": str(folder),
        "prepare": ResampleToFixed(spacing=2.0),
        "pattern": "scans/{}_scans.nii.gz",
        "labels": "labels/{}_labels.nii.gz",
    }

    def images(split):
        return list_images(split, **options)

    names = {split: {fixed.name for fixed, _ in images(split).case_pairs} for split in SPLITS}
    assert [len(names[split]) for split in SPLITS] == [8, 1, 1]
    assert len(set().union(*names.values())) == 10
    fields = LowFrequency(max_deform=2, sigma=3, border=2)
    pair = DeformedImages("val", images, fields, num_points=5)[0]
    assert pair["fixed"].shape == pair["moving_labels"].shape == (1, 6, 14, 8)
    assert pair["spacing"].tolist() == [2, 2, 2]
    assert pair["fixed_points"].shape == (5, 3)
    with pytest.raises(UserError, match=r"x_\{\}\.nii"):
        list_images("train", **{**options, "pattern": "x_{}.nii"})


def test_published_settings_apply_to_image_files(folder, composed):
    where = ["data=synthetic_dvf_2017", f"data.dataset.images.root={folder}/scans"]
    data = instantiate_config(composed("train", *where).data).make_dataset("val")
    published = [(f.max_deform, f.sigma, f.border) for f in data.displacement.fields]
    assert published == [(20, 35, 33), (15, 25, 33), (15, 20, 33)]
    with pytest.raises(UserError, match="border=33 mm"):
        data[0]


@pytest.mark.parametrize("ndim", [2, 3])
def test_phantom_images_need_no_files(ndim, composed):
    size = ["data.dataset.images.shape=24", "data.dataset.images.num_pairs=2"]
    pair = instantiate_config(
        composed("train", "data=synthetic_dvf", f"ndim={ndim}", *size).data
    ).make_dataset("val")[0]
    assert pair["fixed"].shape == (1, *[24] * ndim)
    assert pair["fixed_points"].shape == (64, ndim)
    assert 0.5 < pair["displacement"].abs().max() <= 4
