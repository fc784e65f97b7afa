"""Train a registration model: ``python train.py model=gradirn data=task04 loss=ncc``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import command
from regnet_lab.config.run_dir import continued, keep
from regnet_lab.training.failures import less
from regnet_lab.utils.distributed import first
from regnet_lab.utils.runtime import prepare

log = logging.getLogger(__name__)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Fit the model; the monitored metric is what a sweep compares."""
    from regnet_lab.cli.multirun import finish, last_checkpoint
    from regnet_lab.config.checkpoints import checkpoint_path, load_matching, read_weights
    from regnet_lab.config.instantiate import build
    from regnet_lab.data.validation.report import check
    from regnet_lab.training.config_sync import Agreement
    from regnet_lab.training.failures import explained
    from regnet_lab.utils import profiling

    checkpoint = last_checkpoint(cfg)
    cfg = continued(cfg) if cfg.resume else cfg
    prepare(cfg)
    profiling.hold()
    data = build(cfg.data, cfg.allow)
    if cfg.doctor is not None and first():
        check(data, whole=cfg.doctor)
    if cfg.doctor:
        return None
    module = build(cfg.module, cfg.allow)
    for run in [] if checkpoint else cfg.init_from:
        log.info(load_matching(module, checkpoint_path(run, "best")))
    callbacks = [c for c in build(cfg.callbacks, cfg.allow).values() if c]
    trainer = build(cfg.trainer, cfg.allow, callbacks=[Agreement(cfg), *callbacks])
    keep(cfg)
    if checkpoint:
        read_weights(Path(checkpoint))  # or say that it is damaged, or refused
    with explained(less(cfg), f"continue with train.py resume={cfg.folder}"):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return finish(cfg, trainer)


if __name__ == "__main__":
    main()
