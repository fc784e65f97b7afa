"""Register scans, ``python register.py fixed=a.nii.gz moving=b.nii.gz``, or apply a transform."""

from omegaconf import DictConfig

from regnet_lab.cli import command, prepare


@command("register")
def main(cfg: DictConfig) -> None:
    """Register a pair or a list of pairs, or resample an image through transforms."""
    from regnet_lab import desk

    prepare(cfg)
    desk.serve(cfg)


if __name__ == "__main__":
    main()
