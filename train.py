"""Train a registration model: ``python train.py model=gradirn data=task04 loss=ncc``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from regnet_lab.cli import command, continued, first, keep, less, prepare

log = logging.getLogger(__name__)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Fit the model; the monitored metric is what a sweep compares."""
    from regnet_lab import memory
    from regnet_lab.agreement import Agreement
    from regnet_lab.build import build
    from regnet_lab.mishaps import explained
    from regnet_lab.report.checkup import check
    from regnet_lab.sweep import finish, last_checkpoint
    from regnet_lab.weights import checkpoint_path, load_matching, read_weights

    checkpoint = last_checkpoint(cfg)
    cfg = continued(cfg) if cfg.resume else cfg
    prepare(cfg)
    memory.hold()
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
