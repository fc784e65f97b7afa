"""Register scans, ``python register.py fixed=a.nii.gz moving=b.nii.gz``, or apply a transform."""

from omegaconf import DictConfig

from regnet_lab.cli import command, prepare


@command("register")
def main(cfg: DictConfig) -> None:
    """Register a pair or a list of pairs, or resample an image through transforms."""
    from regnet_lab import desk

    prepare(cfg)
    if cfg.apply:
        desk.apply(cfg)
    elif cfg.pairs:
        desk.register_all(cfg)
    else:
        desk.register_one(cfg)


if __name__ == "__main__":
    main()
