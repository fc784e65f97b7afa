"""A run's configuration back from its folder, which may be a stranger's."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.config.compose import CONF
from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import written
from regnet_lab.utils.distributed import first

LARGEST = 2**20  # bytes
FOREIGN = (yaml.TagToken, yaml.AnchorToken, yaml.AliasToken)  # never written by a run


def mapped(node: Any, change: Callable[[str], str]) -> Any:
    """A plain container with every string in it changed, its keys too."""
    if isinstance(node, dict):
        return {mapped(key, change): mapped(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [mapped(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def final(text: str) -> str:
    """A string of a resolved configuration.

    Raises:
        UserError: It is an interpolation, such as of an environment variable.
    """
    if "${" in text:
        raise UserError(f"refused, what a run keeps holds no interpolation such as {text}.")
    return text


def parsed(text: str) -> dict[str, Any]:
    """The plain mapping that a run's ``config.yaml`` is.

    Raises:
        UserError: It is damaged, or holds what no run writes: tags, anchors, interpolations.
    """
    try:
        if any(isinstance(token, FOREIGN) for token in yaml.scan(text)):
            raise UserError("refused, what a run keeps has no tags and no anchors.")
        plain: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError("is damaged, or not what a run keeps.") from error
    plain = mapped(plain, final)
    if not isinstance(plain, dict) or not isinstance(plain.get("folder"), str):
        raise UserError("is not the configuration of a run, it does not name its folder.")
    return plain


def read_kept(run: Path) -> dict[str, Any]:
    """The configuration in the folder of a run, with that folder where it lies now.

    Raises:
        UserError: There is none, or it is not to be trusted.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run}: not the folder of a run, there is no config.yaml in it.")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: refused, it is far too large.")
    try:
        plain = parsed(path.read_text(encoding="utf-8"))
    except (UserError, OSError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, UserError) else "cannot be read."
        raise UserError(f"{path}: {reason}") from error
    folder = plain["folder"]
    return mapped(plain, lambda text: text.replace(folder, str(run))) if folder else plain


REPORTED = ("torch", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "regnet-lab")


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
