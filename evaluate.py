"""Evaluate a run, ``python evaluate.py run=outputs/...``, or ``model=identity data=task04``."""

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import hydra_command


@hydra_command("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the evaluation task on every pair of the split, and write tables and figures."""
    from regnet_lab.config.instantiate import instantiate_config
    from regnet_lab.config.run_dir import save_run_metadata
    from regnet_lab.evaluation.setup import (
        instantiate_callbacks,
        require_no_other_evaluation,
        set_up_evaluation,
    )
    from regnet_lab.training.config_sync import ConfigConsistencyCheck
    from regnet_lab.training.failures import oom_hint, translate_errors
    from regnet_lab.utils.runtime import configure_runtime

    configure_runtime(cfg)
    require_no_other_evaluation(cfg)
    module, data = set_up_evaluation(cfg)
    callbacks = [ConfigConsistencyCheck(cfg), *instantiate_callbacks(cfg)]
    trainer = instantiate_config(cfg.trainer, cfg.trusted_packages, callbacks=callbacks)
    save_run_metadata(cfg, "evaluation_")
    pairs = data.make_eval_dataloader(cfg.split)
    with translate_errors(oom_hint(cfg), "evaluate again"):
        instantiate_config(cfg.task, cfg.trusted_packages).run(trainer, module, pairs)


if __name__ == "__main__":
    main()
