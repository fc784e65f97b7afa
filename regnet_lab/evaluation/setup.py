"""What ``evaluate.py`` judges: a run's model with its weights, a model as it is, a submission."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback

from regnet_lab.config.checkpoints import checkpoint_path, load_weights
from regnet_lab.config.instantiate import build
from regnet_lab.config.run_dir import kept
from regnet_lab.data.datamodule import PairModule
from regnet_lab.errors import UserError
from regnet_lab.evaluation.submission import PublishedPairs, Submission, Submitted
from regnet_lab.training.module import RegistrationModule


def is_year(submission: Any) -> bool:
    """Whether a submission is to be made, for that year; else it is null or one to be judged."""
    return isinstance(submission, int)


def judged(cfg: DictConfig) -> tuple[RegistrationModule, PairModule]:
    """Who answers, and the pairs to answer.

    Raises:
        UserError: It is not said who, or on which data.
    """
    submitted = cfg.submission is not None and not is_year(cfg.submission)
    if not cfg.run and not (cfg.get("data") and (submitted or cfg.get("model"))):
        raise UserError(
            "say which run to judge with run=<folder>, or give model=... and data=..., or "
            "submission=<folder or zip> and data=..."
        )
    data = judged_data(cfg)
    return judged_submission(cfg, data) if submitted else (judged_module(cfg), data)


def judged_data(cfg: DictConfig) -> PairModule:
    """The data asked for, or else the run's own."""
    return build(cfg.get("data") or kept(cfg.run).data, cfg.allow)


def judged_submission(cfg: DictConfig, data: PairModule) -> tuple[RegistrationModule, PairModule]:
    """The displacements of a folder or a zip, and the data on the grid they are submitted on."""
    pairs = PublishedPairs(data.pairs(cfg.split))
    path = Path(str(cfg.submission))
    module = Submitted(
        Submission(path, pairs.entries), build(cfg.metrics, cfg.allow), cfg.name or path.stem
    )
    return module, PairModule(partial(_as_they_are, pairs), workers=data.workers)


def _as_they_are(pairs: PublishedPairs, split: str) -> PublishedPairs:
    return pairs


def judged_module(cfg: DictConfig) -> RegistrationModule:
    """The run's module with the weights of ``checkpoint``; without a run, a fresh ``model``.

    Where the data are volumes for models of slices, so becomes a model that is not one yet.

    Raises:
        UserError: The run's model has another number of dimensions than the data.
    """
    score = build(cfg.metrics, cfg.allow)
    if not cfg.run:
        model = build(cfg.get("slice_wise") or cfg.model, cfg.allow)
        return RegistrationModule(model, {}, None, score=score, name=cfg.name)  # type: ignore[arg-type]
    run = kept(cfg.run)
    ndim = OmegaConf.select(cfg, "ndim", default=run.ndim)
    if ndim != run.ndim:
        raise UserError(f"{cfg.run} was trained in {run.ndim}D, but this data is {ndim}D.")
    module = build(run.module, cfg.allow, score=score)
    load_weights(module, checkpoint_path(cfg.run, cfg.checkpoint))
    if cfg.get("slice_wise") and not run.get("slice_wise"):
        module.model = build(cfg.slice_wise, cfg.allow, model=module.model)
    return module


def callbacks(cfg: DictConfig) -> list[Callback]:
    """What happens beside judging; a submission is written where ``submission`` is a year."""
    wanted = dict(OmegaConf.to_container(cfg.callbacks, resolve=True))  # type: ignore[arg-type]
    if not is_year(cfg.submission):
        wanted.pop("submission", None)
    return [c for c in build(OmegaConf.create(wanted), cfg.allow).values() if c]
