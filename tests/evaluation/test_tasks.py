"""Evaluation tasks: figures, fits and passes of DIRV-Net."""

import json
import re

import numpy as np
import pytest
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regnet_lab import ops
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.evaluation.setup import instantiate_callbacks
from regnet_lab.evaluation.tasks import (
    ControlPointFitTask,
    DIRVNetFiguresTask,
    IterativeRefinementTask,
)
from regnet_lab.models import Identity
from regnet_lab.training.callbacks import CaseTable
from regnet_lab.visualization import field_of_experts


def distance(u, v):
    return (u - v).square().sum(1).sqrt().mean().item()


BATCH = {"images", "displacements", "vectors", "unit_images", "unit_displacements"}


LEARNED = ("filters", "activations", "potentials")


MODEL = {"weights", *(f"{term}_{kind}" for term in field_of_experts.TERMS for kind in LEARNED)}


TINY = [
    "data=chessboard", "model=dirvnet", "loss=dirvnet", "callbacks=dirvnet",
    "data.dataset.images.shape=20", "model.units=2", "model.filters=2", "data.dataset.num_pairs=4",
    "data.batch_size=2", "data.epoch_size=4", "trainer.accelerator=cpu", "trainer.devices=1",
    "trainer.enable_progress_bar=false", "trainer.max_epochs=2",
    "callbacks.dirvnet_figures.every_n_epochs=2", "callbacks.dirvnet_figures.num_cases=2",
]  # fmt: skip


def make_trainer(folder):
    """Make a trainer with the callbacks of evaluate.py."""
    settings = {
        "output_dir": str(folder),
        "num_pictures": 1,
        "run": None,
        "submission": None,
        "trusted_packages": [],
    }
    cfg = OmegaConf.create(
        settings | {"callbacks": OmegaConf.load(f"{CONFIG_DIR}/callbacks/evaluate.yaml")}
    )
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=instantiate_callbacks(cfg),
    )


@pytest.fixture
def parts(composed, tmp_path):
    """A configuration with its module and data."""
    cfg = composed("train", *TINY)
    cfg.output_dir = str(tmp_path)
    return cfg, instantiate_config(cfg.module), instantiate_config(cfg.data)


def test_a_run_writes_figures_to_tensorboard_and_files(parts, tmp_path):
    (cfg, module, data), folder = parts, tmp_path
    (folder / "config.yaml").write_text("ndim: 2", encoding="utf-8")
    callback = instantiate_config(cfg.callbacks.dirvnet_figures)
    instantiate_config(cfg.trainer, callbacks=[callback], enable_checkpointing=False).fit(
        module, data
    )
    table = np.genfromtxt(folder / "levels.csv", delimiter=",", names=True)
    assert table["step"].tolist() == [0, 2, 4]
    assert (table["epe_vox"] > 0).all()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    groups = BATCH | MODEL | {"smallest_gradients", "level_losses"}
    assert {tag.split("/")[-1] for tag in events.Tags()["images"]} == groups
    assert "configuration/text_summary" in events.Tags()["tensors"]
    task = DIRVNetFiguresTask(str(folder / "pictures"), str(folder / "levels.csv"), num_cases=2)
    task.run(make_trainer(folder), module, data.make_eval_dataloader("test"))
    assert {path.stem for path in (folder / "pictures").glob("*.png")} == groups


def test_a_model_is_scored_beside_the_best_fit(parts, tmp_path, capsys):
    _, module, data = parts
    ControlPointFitTask().run(make_trainer(tmp_path), module, data.make_eval_dataloader("test"))
    text = capsys.readouterr().out.split("Endpoint error")[1]
    identity, model, best, ratio = (float(x) for x in re.findall(r"\d+\.\d+", text))
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    for name, value in (("identity", identity), ("dirvnet", model), ("optimum", best)):
        assert summary[name]["epe_vox"]["mean"] == pytest.approx(value, abs=1e-3)
    assert best < min(model, identity)
    assert ratio == pytest.approx(model / best, rel=0.01)
    with np.load(tmp_path / "gallery" / "best.npz") as example:
        assert str(example["method"]) == "dirvnet"


def test_a_model_is_scored_after_every_pass(parts, tmp_path):
    _, module, data = parts
    data, trainer = data.make_eval_dataloader("test"), make_trainer(tmp_path)
    IterativeRefinementTask(max_passes=3).run(trainer, module, data)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    names = ["identity", "dirvnet", "dirvnet x 2", "dirvnet x 3", "dirvnet until it stops"]
    assert [name for name in summary if name != "cases"] == names
    pair = next(iter(data))
    module.eval()
    twice = module.model.eval()(pair["fixed"], module(pair).warped.detach())[-1]
    total = ops.compose(twice, module(pair).displacement)
    (table,) = (c for c in trainer.callbacks if isinstance(c, CaseTable))
    errors = {(record["case"], record["method"]): record["epe_vox"] for record in table.records}
    second = errors[pair["name"][0], "dirvnet x 2"]
    assert second == pytest.approx(distance(total, pair["displacement"]), rel=1e-3)


def test_the_best_fit_needs_control_points_and_a_true_displacement(parts, tmp_path):
    _, module, data = parts
    data = data.make_eval_dataloader("test")
    module.score = lambda pair, u: {"rmse": 0.0}
    with pytest.raises(UserError, match="metrics=full"):
        ControlPointFitTask().run(make_trainer(tmp_path), module, data)
    module.model = Identity()
    with pytest.raises(UserError, match="has no control points"):
        ControlPointFitTask().run(make_trainer(tmp_path), module, data)
