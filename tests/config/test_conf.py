"""Every YAML under conf/ composes, resolves, and what it describes can be built."""

import tomllib

import pytest
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import build
from tests.helpers import CONF

ELSEWHERE = ("align", "refine")  # see test_register.py
CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in ELSEWHERE
]
BUILT = ("data", "module", "callbacks", "trainer", "metrics", "task")


def script_for(group, name):
    return "evaluate" if name == "evaluate" or group == "task" else "train"


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_composes_and_builds(group, name, composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if f"/sweeper: {name}" in (CONF / group / f"{name}.yaml").read_text(encoding="utf-8"):
        plugin = f"hydra_plugins.hydra_{name}_sweeper"
        pytest.importorskip(plugin, reason="needs pip install --editable '.[sweeps]'")
    prefix = "+" if group == "sweep" else ""
    cfg = composed(script_for(group, name), f"{prefix}{group}={name}")
    OmegaConf.set_readonly(cfg, False)
    cfg.folder = str(tmp_path)
    if "accelerator" in cfg.trainer:
        cfg.trainer.update(accelerator="cpu", devices=1, precision=32)
    objects = {part: build(cfg[part]) for part in BUILT if OmegaConf.select(cfg, part) is not None}
    assert set(objects) >= {"callbacks", "trainer", "metrics"}
    assert all(built is not None for built in objects.values())


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_set_says_its_dimensions_and_what_to_monitor(name, composed):
    cfg = composed("train", f"data={name}")
    assert cfg.ndim in (2, 3)
    assert cfg.monitor.startswith("val/")
    assert cfg.monitor_mode in ("min", "max")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_set_can_be_judged_by_evaluate(name, composed, tmp_path):
    cfg = composed("evaluate", f"data={name}", "model=identity")
    cfg.folder = str(tmp_path)
    assert build(cfg.data) is not None


def test_every_folder_of_configurations_is_installed():
    project = tomllib.loads((CONF.parent / "pyproject.toml").read_text(encoding="utf-8"))
    installed = project["tool"]["setuptools"]["data-files"]
    for folder in {path.parent.relative_to(CONF.parent) for path in CONF.rglob("*.yaml")}:
        assert installed[f"share/regnet_lab/{folder}"] == [f"{folder}/*.yaml"]
