"""Tests of finding and loading checkpoints."""

import pytest
import safetensors.torch
import torch

from regnet_lab.config.checkpoints import find_checkpoint, load_matching_weights, load_weights
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from tests.helpers import ROOT


def network(width):
    return torch.nn.ModuleDict({"kept": torch.nn.Linear(2, 2), "grown": torch.nn.Linear(2, width)})


@pytest.fixture
def saved(tmp_path):
    module, path = network(3), tmp_path / "a.ckpt"
    torch.save({"state_dict": module.state_dict()}, path)
    return module, path


def test_matching_weights_are_loaded_and_the_others_reported(saved):
    module, path = saved
    wider = network(4)
    before = wider["grown"].weight.clone()
    report = load_matching_weights(wider, path)
    assert torch.equal(wider["kept"].weight, module["kept"].weight)
    assert torch.equal(wider["grown"].weight, before)
    assert report.startswith("2 of 4 tensors")
    assert "grown.weight" in report.split("new:")[1].split(";")[0]


def test_checkpoint_of_another_model_is_refused(saved):
    with pytest.raises(UserError, match="does not fit this model"):
        load_weights(network(4), saved[1])
    with pytest.raises(UserError, match="none of its weights matches"):
        load_matching_weights(torch.nn.Conv2d(1, 1, 3), saved[1])


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken"])
def test_error_names_the_damaged_checkpoint(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.ckpt"):
        load_weights(network(3), path)


def test_checkpoint_is_found_by_name_by_path_and_as_the_run_argument(tmp_path, saved):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "best.ckpt").touch()
    assert find_checkpoint(str(tmp_path / "run"), "best") == folder / "best.ckpt"
    assert find_checkpoint("nowhere", str(saved[1])) == saved[1]
    assert find_checkpoint(str(saved[1]), "best") == saved[1]
    with pytest.raises(UserError, match="nowhere"):
        find_checkpoint("nowhere", "best")


def test_packaged_weights_start_a_training(tmp_path, composed):
    module = instantiate_config(composed("train", "model=shared_pyramid", "ndim=3").module)
    summary = load_matching_weights(module, ROOT / "weights" / "general_3d.safetensors")
    assert summary.startswith("17 of 17 tensors")
    expected = safetensors.torch.load_file(ROOT / "weights" / "general_3d.safetensors")
    for name, tensor in module.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"a\.safetensors: is damaged"):
        load_matching_weights(module, tmp_path / "a.safetensors")
