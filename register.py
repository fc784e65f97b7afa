"""Register scans, ``python register.py fixed.nii.gz moving.nii.gz``, or apply a transform."""

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import hydra_command


@hydra_command("register", positional_images=True)
def main(cfg: DictConfig) -> None:
    """Register a pair or a list of pairs, or resample an image through transforms."""
    from regnet_lab.cli.register import run_register
    from regnet_lab.utils.runtime import configure_runtime

    configure_runtime(cfg)
    run_register(cfg)


if __name__ == "__main__":
    main()
