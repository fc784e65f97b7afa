"""Judge a run, ``python evaluate.py run=outputs/...``, or ``model=identity data=task04``."""

from omegaconf import DictConfig

from regnet_lab.cli import command, keep, less, prepare


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Do the task with every pair of the split, write the tables and print the summary."""
    from regnet_lab.agreement import Agreement
    from regnet_lab.build import build
    from regnet_lab.evaluation import callbacks, judged
    from regnet_lab.mishaps import explained

    prepare(cfg)
    module, data = judged(cfg)
    trainer = build(cfg.trainer, cfg.allow, callbacks=[Agreement(cfg), *callbacks(cfg)])
    keep(cfg, "evaluation_")
    pairs = data.one_by_one(cfg.split)
    with explained(less(cfg), "judge it once more"):
        build(cfg.task, cfg.allow).run(trainer, module, pairs)


if __name__ == "__main__":
    main()
