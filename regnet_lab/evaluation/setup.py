"""Set up what ``evaluate.py`` scores: a run, a model without a run, or a submission."""

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback

from regnet_lab.config.checkpoints import find_checkpoint, load_weights
from regnet_lab.config.folders import require_same_settings
from regnet_lab.config.instantiate import instantiate_config, instantiate_run_config
from regnet_lab.config.run_dir import load_run_config, read_run_config
from regnet_lab.config.settings import flatten_settings
from regnet_lab.data.datamodule import PairDataModule
from regnet_lab.errors import UserError
from regnet_lab.evaluation.results import CONFIG_FILE
from regnet_lab.evaluation.submission import OriginalGridPairs, Submission, SubmissionModule
from regnet_lab.training.module import RegistrationModule
from regnet_lab.utils.distributed import is_rank_zero

# of the tasks; the folder of a failed evaluation has none of them
RESULT_FILES = ("cases.csv", "summary.json", "iteration_sweep.csv", "displacement_stats.csv")


def require_no_other_evaluation(cfg: DictConfig) -> None:
    """Refuse a folder that holds an evaluation with other settings, unless ``overwrite`` is set."""
    folder = Path(cfg.output_dir)
    is_complete = any((folder / name).is_file() for name in RESULT_FILES)
    if is_complete and (folder / CONFIG_FILE).is_file() and not cfg.overwrite and is_rank_zero():
        earlier = OmegaConf.create(read_run_config(folder, CONFIG_FILE))
        settings = flatten_settings(cfg), flatten_settings(earlier)
        require_same_settings(folder, "evaluation", *settings)


def is_year(submission: Any) -> bool:
    """Return whether ``submission`` is a year, for which one is written, not one to score."""
    return isinstance(submission, int)


def set_up_evaluation(cfg: DictConfig) -> tuple[RegistrationModule, PairDataModule]:
    """Return the module to evaluate and its data."""
    has_submission = cfg.submission is not None and not is_year(cfg.submission)
    if not cfg.run and not (cfg.get("data") and (has_submission or cfg.get("model"))):
        raise UserError(
            "say which run to evaluate with run=<folder>, or give model=... and data=..., or "
            "submission=<folder or zip> and data=..."
        )
    if cfg.get("data"):
        data = instantiate_config(cfg.data, cfg.trusted_packages)
    else:
        data = instantiate_run_config(load_run_config(cfg.run).data, cfg.trusted_packages)
    return set_up_submission(cfg, data) if has_submission else (load_module(cfg), data)


def set_up_submission(
    cfg: DictConfig, data: PairDataModule
) -> tuple[RegistrationModule, PairDataModule]:
    """Return a module of the submitted displacements, and the pairs on their original grids."""
    pairs = OriginalGridPairs(data.make_dataset(cfg.split))
    path = Path(str(cfg.submission))
    scorer = instantiate_config(cfg.metrics, cfg.trusted_packages)
    submission = Submission(path, pairs.challenge_pairs)
    module = SubmissionModule(submission, scorer, cfg.method_name or path.stem)
    return module, PairDataModule(lambda split: pairs, num_workers=data.num_workers)


def load_module(cfg: DictConfig) -> RegistrationModule:
    """Load the run's module with the weights of ``checkpoint``, or instantiate ``model``.

    For volumes, a 2D model is wrapped to register slice by slice if the data ask for it.
    """
    scorer = instantiate_config(cfg.metrics, cfg.trusted_packages)
    if not cfg.run:
        model = instantiate_config(cfg.get("slice_wise") or cfg.model, cfg.trusted_packages)
        return RegistrationModule(model, {}, None, metrics=scorer, name=cfg.method_name)  # type: ignore[arg-type]
    run = load_run_config(cfg.run)
    ndim = OmegaConf.select(cfg, "ndim", default=run.ndim)
    if ndim != run.ndim:
        raise UserError(f"{cfg.run} was trained in {run.ndim}D, but this data is {ndim}D.")
    module = instantiate_run_config(run.module, cfg.trusted_packages, metrics=scorer)
    load_weights(module, find_checkpoint(cfg.run, cfg.checkpoint))
    if cfg.get("slice_wise") and not run.get("slice_wise"):
        module.model = instantiate_config(cfg.slice_wise, cfg.trusted_packages, model=module.model)
    return module


def instantiate_callbacks(cfg: DictConfig) -> list[Callback]:
    """Instantiate the callbacks; that of the submission only where ``submission`` is a year."""
    callbacks = cast(dict[str, Any], OmegaConf.to_container(cfg.callbacks, resolve=True))
    if not is_year(cfg.submission):
        callbacks.pop("submission", None)
    instances = instantiate_config(OmegaConf.create(callbacks), cfg.trusted_packages)
    return [callback for callback in instances.values() if callback]
