"""Every file of conf/ composes and resolves, and its objects can be instantiated."""

import tomllib

import pytest
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.config.run_dir import save_run_metadata
from tests.helpers import CONF

REGISTER_GROUPS = ("align", "optimizer")  # see tests/registration
CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name not in REGISTER_GROUPS
]
INSTANTIATED = ("data", "module", "callbacks", "trainer", "metrics", "task")


def script_for(group, name):
    return "evaluate" if name == "evaluate" or group == "task" else "train"


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_file_composes_and_its_objects_are_instantiated(
    group, name, composed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if f"/sweeper: {name}" in (CONF / group / f"{name}.yaml").read_text(encoding="utf-8"):
        plugin = f"hydra_plugins.hydra_{name}_sweeper"
        pytest.importorskip(plugin, reason="needs pip install --editable '.[sweeps]'")
    prefix = "+" if group == "sweep" else ""
    cfg = composed(script_for(group, name), f"{prefix}{group}={name}")
    OmegaConf.set_readonly(cfg, False)
    cfg.output_dir = str(tmp_path)
    if "accelerator" in cfg.trainer:
        cfg.trainer.update(accelerator="cpu", devices=1, precision=32)
    objects = {
        part: instantiate_config(cfg[part])
        for part in INSTANTIATED
        if OmegaConf.select(cfg, part) is not None
    }
    assert set(objects) >= {"callbacks", "trainer", "metrics"}
    assert all(value is not None for value in objects.values())


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_set_defines_ndim_and_monitor(name, composed):
    cfg = composed("train", f"data={name}")
    assert cfg.ndim in (2, 3)
    assert cfg.monitor.startswith("val/")
    assert cfg.monitor_mode in ("min", "max")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_set_can_be_evaluated(name, composed, tmp_path):
    cfg = composed("evaluate", f"data={name}", "model=identity")
    cfg.output_dir = str(tmp_path)
    assert instantiate_config(cfg.data) is not None


def test_every_configuration_folder_is_installed():
    project = tomllib.loads((CONF.parent / "pyproject.toml").read_text(encoding="utf-8"))
    installed = project["tool"]["setuptools"]["data-files"]
    for folder in {path.parent.relative_to(CONF.parent) for path in CONF.rglob("*.yaml")}:
        assert installed[f"share/regnet_lab/{folder}"] == [f"{folder}/*.yaml"]


@pytest.fixture
def run(tmp_path, composed):
    cfg = composed("train", "data=brain2d")
    OmegaConf.set_struct(cfg, False)
    cfg.pop("hydra")
    cfg.output_dir = str(tmp_path)
    save_run_metadata(cfg)
    return tmp_path


def get_evaluation_folder(cfg):
    return str(cfg.hydra.run.dir)


def test_evaluation_folder_is_named_after_data_split_task_and_metrics(run, composed):
    cfg = composed("evaluate", f"run={run}", "split=val", "task=atlas", "metrics=learn2reg")
    assert get_evaluation_folder(cfg) == f"{run}/evaluation/brain2d-val-atlas-learn2reg"
    cfg = composed("evaluate", f"run={run}", "data=task04")
    assert get_evaluation_folder(cfg) == f"{run}/evaluation/task04-test-score-full"
    cfg = composed("evaluate", "model=identity", "data=task04")
    assert get_evaluation_folder(cfg) == "outputs/identity/evaluation/task04-test-score-full"


@pytest.mark.parametrize(
    ("checkpoint", "suffix"), [("best", ""), ("last", "-last"), ("a/step_10.ckpt", "-step_10")]
)
def test_evaluation_folder_names_a_checkpoint_other_than_best(checkpoint, suffix, run, composed):
    cfg = composed("evaluate", f"run={run}", f"checkpoint={checkpoint}")
    assert get_evaluation_folder(cfg) == f"{run}/evaluation/brain2d-test-score-full{suffix}"


def test_untrusted_data_name_cannot_choose_another_folder(run, composed):
    path = run / "config.yaml"
    text = path.read_text("utf-8").replace("data_name: brain2d", "data_name: ../../other")
    path.write_text(text, "utf-8")
    folder = get_evaluation_folder(composed("evaluate", f"run={run}"))
    assert folder == f"{run}/evaluation/.._.._other-test-score-full"
