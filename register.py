"""Register scans, ``python register.py fixed=a.nii.gz moving=b.nii.gz``, or apply a transform."""

from omegaconf import DictConfig

from regnet_lab.cli.entrypoint import command
from regnet_lab.utils.runtime import prepare


@command("register")
def main(cfg: DictConfig) -> None:
    """Register a pair or a list of pairs, or resample an image through transforms."""
    from regnet_lab.cli import register

    prepare(cfg)
    register.serve(cfg)


if __name__ == "__main__":
    main()
