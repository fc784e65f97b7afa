"""What the three commands share: one sentence for a user's mistake, run folders, resuming.

Imports nothing heavy, so that ``--help`` is quick.
"""

import functools
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.durable import written
from regnet_lab.errors import UserError
from regnet_lab.kept import read_kept

ROOTS = Path(__file__).parent.parent, Path(sys.prefix) / "share/regnet_lab"  # checkout, installed
CONF = str(next((path for root in ROOTS if (path := root / "conf").is_dir()), ROOTS[0] / "conf"))
REPORTED = ("torch", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "regnet-lab")

OmegaConf.register_new_resolver("first", lambda a, b: a or b, replace=True)


def sentence(error: Exception) -> str:
    """The message on one line, without a loader worker's traceback or Hydra's chatter."""
    text = str(error).rsplit("UserError: ", 1)[-1]
    if isinstance(error.__cause__, OmegaConfBaseException | HydraException):
        text += " " + str(error.__cause__)
    for chatter in ("Config search path", "full_key:", "object_type="):
        text = text.split(chatter)[0]
    return " ".join(text.split())


def left_out(words: Sequence[str]) -> list[str]:
    """Overrides with ``group=null`` as Hydra spells it: ``~group``."""
    groups = {f"{folder.name}=null" for folder in Path(CONF).iterdir() if folder.is_dir()}
    return [f"~{word.removesuffix('=null')}" if word in groups else word for word in words]


def typed(main: Callable[[], object]) -> None:
    """Run a command as the user typed it."""
    sys.argv[1:] = left_out(sys.argv[1:])
    main()


def one_of_several(
    command: str, task: Callable[[DictConfig], float | None], cfg: DictConfig
) -> float | None:
    """Do a job of a sweep."""
    from regnet_lab import sweep

    return sweep.job(command, task, cfg)


def command(name: str) -> Callable[[Callable[[DictConfig], float | None]], Callable[[], None]]:
    """Make a Hydra command of a function of the configuration ``conf/<name>.yaml``.

    A mistake of the user's ends with one sentence and exit code 2; HYDRA_FULL_ERROR=1 shows the
    traceback instead.
    """

    def decorate(task: Callable[[DictConfig], float | None]) -> Callable[[], None]:
        full = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"

        def told(function: Callable, *args: object) -> float | None:
            try:
                return function(*args)
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if full:
                    raise
                sys.stderr.write(f"{name}: {sentence(error)}\n")
                sys.exit(2)

        @functools.wraps(task)
        def job(cfg: DictConfig) -> float | None:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it looks for fonts
            several = HydraConfig.get().mode == RunMode.MULTIRUN  # of which Hydra tells at the end
            return one_of_several(name, task, cfg) if several else told(task, cfg)

        os.environ["HYDRA_FULL_ERROR"] = "1"
        main = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)
        return functools.partial(typed, functools.partial(told, main))

    return decorate


def quieten() -> None:
    """Let Lightning speak only to warn."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's, of its own code


def prepare(cfg: DictConfig) -> None:
    """Seed everything, set the CPU threads, and let one process speak for all."""
    import torch
    from pytorch_lightning import seed_everything

    quieten()
    if not first():
        logging.getLogger().setLevel(logging.WARNING)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())


def first() -> bool:
    """Whether this is the first of the processes that work together, or alone."""
    from pytorch_lightning.utilities import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=CONF, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, object]:
    """What a result depends on beside its configuration."""
    versions: dict[str, str | None] = {}
    for package in REPORTED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": sys.argv,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions,
    }


def keep(cfg: DictConfig, prefix: str = "") -> None:
    """Write the resolved configuration and the environment into the run's folder.

    ``prefix`` of the two files' names tells an evaluation's from the run's.  Of several processes
    the first one writes.
    """
    if not first():
        return
    folder = Path(cfg.folder)
    texts = {
        f"{prefix}config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
        f"{prefix}environment.json": json.dumps(environment(), indent=2),
    }
    for name, text in texts.items():
        with written(folder / name) as aside:
            aside.write_text(text, "utf-8")


def less(cfg: DictConfig) -> str:
    """What to lower where memory does not suffice."""
    batch = OmegaConf.select(cfg, "data.batch_size") or 1
    steps = [f"lower data.batch_size, now {batch}"] if cfg.get("optim") and batch > 1 else []
    if cfg.trainer.precision == 32:
        steps.append("set trainer.precision=bf16-mixed")
    return ", or ".join([*steps, "take a smaller grid, a narrower model, or the CPU"])


def kept(run: str) -> DictConfig:
    """The configuration of a finished or broken run, with its folder where it lies now.

    Raises:
        UserError: There is no such run, or its configuration is not to be trusted.
    """
    return OmegaConf.create(read_kept(Path(run)))


def continued(cfg: DictConfig) -> DictConfig:
    """The kept configuration of the run to resume, changed by plain ``key=value`` overrides.

    What it may build beyond regnet_lab is the user's word, ``allow``, and not the run's.

    Raises:
        UserError: There is nothing to resume, or an override would change a group.
    """
    run = kept(cfg.resume)
    if not Path(run.folder, "checkpoints", "last.ckpt").is_file():
        raise UserError(f"{cfg.resume}: cannot be resumed, there is no checkpoints/last.ckpt.")
    OmegaConf.set_struct(run, True)
    for override in HydraConfig.get().overrides.task:
        key, _, _ = override.partition("=")
        if key in ("resume", "allow"):
            continue
        if key[0] in "+~" or OmegaConf.is_config(OmegaConf.select(run, key)):
            raise UserError(f"resume: {override} cannot change a run; give plain key=value only.")
        OmegaConf.update(run, key, OmegaConf.select(cfg, key))
    run.allow = cfg.allow
    return run
