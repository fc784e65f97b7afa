"""Pretrained weights with a card: packaging, checks, use on images of any size."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from regnet_lab import ops
from regnet_lab.cli import package_weights
from regnet_lab.data.io.images import decode_image
from regnet_lab.data.preprocessing.functional import crop_or_pad, normalize_percentiles
from regnet_lab.data.synthesis.synthmorph import RandomDiffeomorphism
from regnet_lab.errors import UserError
from regnet_lab.models import Identity, SharedPyramid
from regnet_lab.models import general as pretrained
from regnet_lab.registration.api import build_pipeline
from tests.helpers import ROOT

DATA = os.environ.get("REGNET_LAB_DATA")

SMALL = [
    "model=shared_pyramid",
    "model.levels=2",
    "model.encoder_channels=4",
    "model.estimator_channels=4",
    "data=synthmorph_2d",
    "data.dataset.shape=[24,24]",
    "data.dataset.num_pairs=2",
    "data.epoch_size=2",
    "data.batch_size=2",
    "data.num_workers=0",
    "loss=general",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.logger=false",
    "callbacks.validation_figure=null",
    "callbacks.energy_curve=null",
    "callbacks.hyperparameters=null",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a training run of one step."""
    root = ROOT
    folder = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        [sys.executable, root / "train.py", *SMALL, f"hydra.run.dir={folder}", "threads=1"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def file(run, tmp_path):
    path = tmp_path / "weights/general_2d.safetensors"
    package_weights.package_weights(str(run), path)
    return path


def test_a_run_is_packaged_as_weights_and_a_card(run, file):
    model, card = pretrained.load_network(file)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, checkpoint["state_dict"][f"model.{name}"])
    assert isinstance(model, SharedPyramid)
    assert card["steps"] == checkpoint["global_step"] == 1
    assert (card["ndim"], card["voxels"], card["seed"]) == (2, 24 * 24, 0)
    assert card["made"]["command"][0].endswith("train.py")
    assert safetensors.torch.load_file(file).keys() == model.state_dict().keys()


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def foreign(path):
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    card["model"]["estimator_channels"] = 8
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")


def forbidden(path):
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    card["model"] = {"_target_": "os.system", "command": "true"}
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")


def pickled(path):
    content = pickle.dumps(math.inf, 2)
    path.write_bytes(content)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    card["sha256"] = hashlib.sha256(content).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (damaged, "is damaged or differs"),
        (foreign, "does not hold the weights"),
        (forbidden, "is refused"),
        (pickled, "does not hold the weights"),
        (lambda path: path.with_suffix(".json").unlink(), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "cannot be read"),
    ],
)
def test_a_file_that_differs_from_its_card_is_refused(file, harm, named):
    harm(file)
    with pytest.raises(UserError, match=named):
        pretrained.load_network(file)


def test_missing_weights_are_named_in_the_error(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match=r"general_3d\.safetensors is missing"):
        pretrained.GeneralModel(3)


def test_installed_weights_are_found_without_a_repository(monkeypatch, tmp_path, file):
    monkeypatch.setattr(pretrained, "FOLDERS", (tmp_path / "nowhere", file.parent))
    assert pretrained.find_weights("general_2d") == file


@pytest.mark.parametrize(
    ("shape", "voxels", "expected"),
    [((20, 30), 600, [20, 30]), ((256, 256, 10), 200_000, None), ((500, 20), 1000, None)],
)
def test_voxels_are_limited_and_short_sides_kept(shape, voxels, expected):
    size = pretrained.limit_voxels(shape, voxels)
    assert size == (expected or size)
    assert math.prod(size) <= voxels
    assert math.prod(size) > 0.8 * voxels
    for n, old in zip(size, shape, strict=True):
        assert n == old if old <= pretrained.MIN_SIDE else n >= pretrained.MIN_SIDE


@pytest.fixture
def general(file, monkeypatch):
    """Both networks: the tiny one of a run in 2D, the distributed one in 3D."""
    monkeypatch.setattr(pretrained, "FOLDERS", (file.parent, *pretrained.FOLDERS))
    return lambda **settings: pretrained.GeneralModel(**settings).eval()


@torch.no_grad()
def test_each_pass_has_a_finer_grid_and_starts_from_the_previous_field(general):
    fixed, moving = torch.rand(2, 1, 1, 96, 48)
    twice, once = general(ndim=2, voxel_factors=(1, 2)), general(ndim=2, voxel_factors=(2,))
    first, second = twice(fixed, moving)
    coarse, fine = (pretrained.limit_voxels((96, 48), n * 24 * 24) for n in (1, 2))
    assert [list(first.shape[2:]), list(second.shape[2:])] == [coarse, fine]
    small = ops.resize(fixed, fine), ops.resize(moving, fine)
    before = ops.resize_field(first, fine)
    more = once(small[0], ops.warp(small[1], before))[-1]
    assert torch.allclose(second, ops.compose(more, before), atol=1e-5)


def test_other_dimensions_are_refused(general):
    with pytest.raises(RuntimeError, match="2 dimensions"):
        general(ndim=2)(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_registered_slice_by_slice_along_any_axis(axis, general):
    fixed, moving = (image.movedim(-1, axis + 2) for image in torch.rand(2, 1, 1, 24, 20, 3))
    (u,) = general()(fixed, moving)
    plane = [a for a in range(3) if a != axis]
    assert u.shape == (1, 3, *fixed.shape[2:])
    assert not u[:, axis].any()
    for number in range(3):
        alone = general(ndim=2)(*(image.select(axis + 2, number) for image in (fixed, moving)))[-1]
        assert torch.allclose(u[:, plane].select(axis + 2, number), alone, atol=1e-5)


def test_register_uses_pretrained_weights_without_a_run(composed):
    pipeline = build_pipeline(composed("register"), ())
    identity_pipeline = build_pipeline(composed("register", "model=identity"), ())
    assert isinstance(pipeline.model, pretrained.GeneralModel)
    assert set(pipeline.model.networks) == {"2", "3"}
    assert isinstance(identity_pipeline.model, Identity)
    assert pipeline.optimizer is not None


def predict_for_two_contrasts(fixed, seed):
    """A known field's and the network's two answers: for the image moved by it, and for that image
    inverted and with another gamma.
    """
    shape = fixed.shape[2:]
    flow = RandomDiffeomorphism(
        amplitude=(0.03, 0.03), smoothness=(0.2, 0.3), affine_std=0.02, max_translation=0.02
    )
    true_u, inverse = flow(np.random.default_rng(seed), shape)
    moving = ops.warp(fixed, inverse)
    inverted = (1 - moving.clamp(0, 1)) ** 1.7
    general = pretrained.GeneralModel(len(shape)).eval()
    with torch.no_grad():
        predictions = [ops.resize_field(general(fixed, m)[-1], shape) for m in (moving, inverted)]
    return true_u, *predictions


def compute_mean_distance(u, v, mask):
    """Mean distance of two fields inside a mask, in voxels."""
    return float((u - v).square().sum(1, keepdim=True).sqrt()[mask].mean())


@pytest.mark.skipif(not DATA, reason="REGNET_LAB_DATA does not lead to learn2reg2020/task_04")
@pytest.mark.parametrize("case", [250, 290])
def test_two_contrasts_of_a_hippocampus_give_the_same_field(case):
    path = Path(DATA, f"learn2reg2020/task_04/Training/img/hippocampus_{case}.nii.gz")
    image = normalize_percentiles(
        crop_or_pad(decode_image(path).array.astype(np.float32), (48, 64, 48))
    )
    fixed = torch.from_numpy(image)[None, None]
    true_u, original, inverted = predict_for_two_contrasts(fixed, case)
    mask = fixed > 0
    assert compute_mean_distance(original, inverted, mask) < 0.5
    assert compute_mean_distance(original, true_u, mask) < 0.6 * compute_mean_distance(
        torch.zeros_like(true_u), true_u, mask
    )
