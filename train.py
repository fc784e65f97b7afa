"""Train a registration model: ``python train.py model=gradirn data=task04 loss=ncc``.

Modules are imported in ``main``, so that ``--help`` is quick.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import hydra_command

log = logging.getLogger(__name__)


@hydra_command("train")
def main(cfg: DictConfig) -> float | None:
    """Train a model; return the monitored metric, which a sweep compares."""
    from regnet_lab.cli.multirun import find_last_checkpoint, finish_run, has_started
    from regnet_lab.config.checkpoints import find_checkpoint, load_matching_weights, read_weights
    from regnet_lab.config.folders import require_no_other_run
    from regnet_lab.config.instantiate import instantiate_config
    from regnet_lab.config.run_dir import resume_config, save_run_metadata
    from regnet_lab.data.validation.report import validate_data
    from regnet_lab.training.config_sync import ConfigConsistencyCheck
    from regnet_lab.training.failures import oom_hint, translate_errors
    from regnet_lab.training.monitor import check_monitor
    from regnet_lab.utils.distributed import is_rank_zero
    from regnet_lab.utils.profiling import keep_freed_memory
    from regnet_lab.utils.runtime import configure_runtime

    checkpoint = find_last_checkpoint(cfg)
    if not checkpoint and not has_started(cfg) and is_rank_zero():
        require_no_other_run(cfg.output_dir, cfg.overwrite)
    cfg = resume_config(cfg) if cfg.resume else cfg
    configure_runtime(cfg)
    keep_freed_memory()

    data = instantiate_config(cfg.data, cfg.trusted_packages)
    if cfg.validate_data is not None and is_rank_zero():
        validate_data(data, full=cfg.validate_data)
    if cfg.validate_data:
        return None

    module = instantiate_config(cfg.module, cfg.trusted_packages)
    sources = [cfg.init_from] if isinstance(cfg.init_from, str) else cfg.init_from or []
    for run in [] if checkpoint else sources:
        log.info(load_matching_weights(module, find_checkpoint(run, "best")))

    callbacks = [c for c in instantiate_config(cfg.callbacks, cfg.trusted_packages).values() if c]
    callbacks = [ConfigConsistencyCheck(cfg), *callbacks]
    check_monitor(cfg.monitor, module, data)
    trainer = instantiate_config(cfg.trainer, cfg.trusted_packages, callbacks=callbacks)

    save_run_metadata(cfg)
    if checkpoint:
        read_weights(Path(checkpoint))  # reports a damaged or refused checkpoint
    with translate_errors(oom_hint(cfg), f"continue with train.py resume={cfg.output_dir}"):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return finish_run(cfg, trainer)


if __name__ == "__main__":
    main()
