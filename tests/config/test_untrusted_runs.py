"""Untrusted runs and files are read or refused with one message, and no code of theirs runs."""

import ast

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.malicious_files import list_malicious_files, open_malicious_file
from regnet_lab.config.instantiate import (
    FUNCTION_PACKAGES,
    instantiate_config,
    instantiate_run_config,
    is_inside_packages,
)
from regnet_lab.config.run_dir import load_run_config, resume_config, save_run_metadata
from regnet_lab.errors import UserError
from regnet_lab.training.callbacks import AtomicCheckpointIO
from tests.helpers import ROOT

MALICIOUS_FILES = list_malicious_files()
WRITING_FUNCTIONS = {
    "replace",
    "rename",
    "mkstemp",
    "savetxt",
    "save",
    "savez",
    "unlink",
    "rmtree",
    "rmdir",
}
WRITING_FUNCTIONS |= {
    "write_text",
    "write_bytes",
    "WriteImage",
    "commit_file",
    "atomic_path",
    "write_figure",
    "system",
}


@pytest.mark.parametrize("name", MALICIOUS_FILES)
def test_malicious_file_is_refused_and_its_code_does_not_run(name):
    message, ran = open_malicious_file(MALICIOUS_FILES[name])
    assert not ran
    assert message
    assert "\n" not in message
    assert "Traceback" not in message


def find_writing_calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in WRITING_FUNCTIONS:
            owner = called.value
            yield called.attr, owner.id if isinstance(owner, ast.Name) else ""
        elif isinstance(called, ast.Name) and called.id in WRITING_FUNCTIONS:
            yield called.id, ""


def test_no_function_that_a_configuration_may_name_writes_files():
    for path in (ROOT / "regnet_lab").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if is_inside_packages(module, FUNCTION_PACKAGES):
            calls = {
                (name, owner)
                for name, owner in find_writing_calls(path)
                if name != "replace" or owner == "os"
            }
            assert not calls, module


def save_and_move_run(tmp_path, cfg):
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    cfg.output_dir = str(tmp_path / "first")
    save_run_metadata(cfg)
    (tmp_path / "first").rename(tmp_path / "moved")
    return tmp_path / "moved"


def test_configuration_of_a_moved_run_has_its_new_paths(tmp_path, composed):
    cfg = composed("train", "ndim=2", "model=voxelmorph", "training_optimizer.lr=1e-3")
    moved = save_and_move_run(tmp_path, cfg)
    expected = OmegaConf.to_container(cfg, resolve=True)
    loaded = OmegaConf.to_container(load_run_config(str(moved)))
    text = str(expected).replace(str(tmp_path / "first"), str(moved))
    assert str(loaded) == text
    assert str(moved) in loaded["callbacks"]["last"]["path"]


def test_trusted_packages_of_a_run_are_ignored(tmp_path, composed):
    cfg = composed("train", "ndim=2", "trusted_packages=[fractions]")
    run = save_and_move_run(tmp_path, cfg)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    assert resume_config(composed("train", f"resume={run}")).trusted_packages == []
    assert resume_config(
        composed("train", f"resume={run}", "trusted_packages=[numbers]")
    ).trusted_packages == ["numbers"]


def test_only_checkpoints_are_removed(tmp_path):
    folder, user_folder = tmp_path / "run" / "checkpoints", tmp_path / "mine"
    folder.mkdir(parents=True)
    user_folder.mkdir()
    for name in ("a.ckpt", "b.txt"):
        (folder / name).touch()
    (user_folder / "c.ckpt").touch()
    for path in (folder / "a.ckpt", folder / "b.txt", folder / "../../mine/c.ckpt", user_folder):
        AtomicCheckpointIO().remove_checkpoint(str(path))
    remaining = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert remaining == ["b.txt", "c.ckpt"]


def test_escaped_interpolation_is_refused():
    config = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5}
    assert instantiate_config(OmegaConf.create(config)).keywords["lr"] == 0.5
    with pytest.raises(UserError, match="interpolation"):
        instantiate_config(OmegaConf.create(config | {"lr": "\\${oc.env:HOME}"}))


def test_checkpoint_written_by_the_package_is_accepted(tmp_path):
    from regnet_lab.config.checkpoints import read_weights

    weights = {"a": torch.randn(3, 4), "b": torch.randint(9, (2,))}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights}, tmp_path / "new" / "a.ckpt")
    loaded = read_weights(tmp_path / "new" / "a.ckpt")
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize(
    "target",
    [
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "pytorch_lightning.Trainer",
        "regnet_lab.training.callbacks.LastCheckpoint",
        "regnet_lab.evaluation.submission.SubmissionWriter",
    ],
)
def test_a_run_cannot_name_what_acts_when_it_is_made(target):
    config = OmegaConf.create({"model": {"_target_": target}})
    with pytest.raises(UserError, match=f"{target} is refused"):
        instantiate_run_config(config)


def test_a_run_cannot_choose_a_cache_folder(tmp_path):
    grid = {"_target_": "regnet_lab.data.preprocessing.grids.Resize", "shape": [4, 4]}
    config = OmegaConf.create(grid | {"cache": str(tmp_path / "victim")})
    instantiate_run_config(config)
    assert not list(tmp_path.iterdir())
    instantiate_config(config)
    assert list(tmp_path.iterdir())
