"""Judge a run, ``python evaluate.py run=outputs/...``, or ``model=identity data=task04``."""

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import command
from regnet_lab.config.run_dir import keep
from regnet_lab.training.failures import less
from regnet_lab.utils.runtime import prepare


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Do the task with every pair of the split, write the tables and print the summary."""
    from regnet_lab.config.instantiate import build
    from regnet_lab.evaluation.setup import callbacks, judged
    from regnet_lab.training.config_sync import Agreement
    from regnet_lab.training.failures import explained

    prepare(cfg)
    module, data = judged(cfg)
    trainer = build(cfg.trainer, cfg.allow, callbacks=[Agreement(cfg), *callbacks(cfg)])
    keep(cfg, "evaluation_")
    pairs = data.one_by_one(cfg.split)
    with explained(less(cfg), "judge it once more"):
        build(cfg.task, cfg.allow).run(trainer, module, pairs)


if __name__ == "__main__":
    main()
