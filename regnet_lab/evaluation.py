"""What ``evaluate.py`` judges: a run's model with its weights, or a model as it is."""

from omegaconf import DictConfig, OmegaConf

from regnet_lab.build import build
from regnet_lab.cli import kept
from regnet_lab.data.module import PairModule
from regnet_lab.errors import UserError
from regnet_lab.module import RegistrationModule
from regnet_lab.weights import checkpoint_path, load_weights


def judged_data(cfg: DictConfig) -> PairModule:
    """The data asked for, or else the run's own."""
    return build(cfg.get("data") or kept(cfg.run).data, cfg.allow)


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
