"""Judge a run, ``python evaluate.py run=outputs/...``, or ``model=identity data=task04``."""

from omegaconf import DictConfig

from regnet_lab.cli import command, keep, prepare
from regnet_lab.errors import UserError


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Do the task with every pair of the split, write the tables and print the summary."""
    from regnet_lab.build import build
    from regnet_lab.evaluation import judged_data, judged_module

    if not cfg.run and not (cfg.get("model") and cfg.get("data")):
        raise UserError("say which run to judge with run=<folder>, or give model=... and data=...")
    prepare(cfg)
    data, module = judged_data(cfg), judged_module(cfg)
    callbacks = [c for c in build(cfg.callbacks, cfg.allow).values() if c]
    trainer = build(cfg.trainer, cfg.allow, callbacks=callbacks)
    keep(cfg, "evaluation_")
    build(cfg.task, cfg.allow).run(trainer, module, data.one_by_one(cfg.split))


if __name__ == "__main__":
    main()
