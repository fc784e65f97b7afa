"""Files of strangers are used or refused with a sentence, and nothing of theirs runs."""

import ast

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.disguises import disguises, told
from regnet_lab.config.instantiate import FUNCTIONS, build, within
from regnet_lab.config.run_dir import continued, keep, kept
from regnet_lab.errors import UserError
from regnet_lab.training.callbacks import WholeCheckpoints
from tests.helpers import ROOT

DISGUISES = disguises()
WRITING = {"replace", "rename", "mkstemp", "savetxt", "save", "savez", "unlink", "rmtree", "rmdir"}
WRITING |= {"write_text", "write_bytes", "WriteImage", "settle", "written", "system"}


@pytest.mark.parametrize("name", DISGUISES)
def test_what_a_stranger_sends_is_refused_and_nothing_runs(name):
    said, ran = told(DISGUISES[name])
    assert not ran
    assert said
    assert "\n" not in said
    assert "Traceback" not in said


def writes(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in WRITING:
            owner = called.value
            yield called.attr, owner.id if isinstance(owner, ast.Name) else ""
        elif isinstance(called, ast.Name) and called.id in WRITING:
            yield called.id, ""


def test_no_function_that_a_configuration_may_name_writes_files():
    for path in (ROOT / "regnet_lab").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if within(module, FUNCTIONS):
            found = {
                (what, owner) for what, owner in writes(path) if what != "replace" or owner == "os"
            }
            assert not found, module


def folder_of(tmp_path, cfg):
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    cfg.folder = str(tmp_path / "first")
    keep(cfg)
    (tmp_path / "first").rename(tmp_path / "moved")
    return tmp_path / "moved"


def test_a_run_that_moved_keeps_its_configuration(tmp_path, composed):
    cfg = composed("train", "ndim=2", "model=voxelmorph", "optim.lr=1e-3")
    moved = folder_of(tmp_path, cfg)
    expected = OmegaConf.to_container(cfg, resolve=True)
    found = OmegaConf.to_container(kept(str(moved)))
    text = str(expected).replace(str(tmp_path / "first"), str(moved))
    assert str(found) == text
    assert str(moved) in found["callbacks"]["last"]["path"]


def test_a_run_cannot_allow_itself_to_build_anything(tmp_path, composed):
    cfg = composed("train", "ndim=2", "allow=[fractions]")
    run = folder_of(tmp_path, cfg)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    assert continued(composed("train", f"resume={run}")).allow == []
    assert continued(composed("train", f"resume={run}", "allow=[numbers]")).allow == ["numbers"]


def test_only_checkpoints_are_ever_removed(tmp_path):
    folder, other = tmp_path / "run" / "checkpoints", tmp_path / "mine"
    folder.mkdir(parents=True)
    other.mkdir()
    for name in ("a.ckpt", "b.txt"):
        (folder / name).touch()
    (other / "c.ckpt").touch()
    for path in (folder / "a.ckpt", folder / "b.txt", folder / "../../mine/c.ckpt", other):
        WholeCheckpoints().remove_checkpoint(str(path))
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["b.txt", "c.ckpt"]


def test_a_value_may_look_like_code_but_no_interpolation_comes_of_it():
    config = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5}
    assert build(OmegaConf.create(config)).keywords["lr"] == 0.5
    with pytest.raises(UserError, match="interpolation"):
        build(OmegaConf.create(config | {"lr": "\\${oc.env:HOME}"}))


def test_a_checkpoint_of_ours_passes(tmp_path):
    from regnet_lab.config.checkpoints import read_weights

    weights = {"a": torch.randn(3, 4), "b": torch.randint(9, (2,))}
    WholeCheckpoints().save_checkpoint({"state_dict": weights}, tmp_path / "new" / "a.ckpt")
    found = read_weights(tmp_path / "new" / "a.ckpt")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.ckpt"]
