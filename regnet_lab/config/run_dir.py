"""Write a run's configuration and environment into its folder, and read them back safely.

A run folder may come from somebody else: its configuration is treated as untrusted input.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import write_text
from regnet_lab.utils.distributed import is_rank_zero
from regnet_lab.utils.paths import CONFIG_DIR

MAX_CONFIG_BYTES = 2**20
FORBIDDEN_TOKENS = (yaml.TagToken, yaml.AnchorToken, yaml.AliasToken)  # never written by a run


def map_strings(node: Any, change: Callable[[str], str]) -> Any:
    """Apply a function to every string of nested dictionaries and lists, keys included."""
    if isinstance(node, dict):
        return {map_strings(key, change): map_strings(value, change) for key, value in node.items()}
    if isinstance(node, list):
        return [map_strings(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def reject_interpolation(text: str) -> str:
    """Return the string unless it contains an interpolation, such as ``${oc.env:HOME}``."""
    if "${" in text:
        raise UserError(
            f"refused, the configuration of a run contains no interpolation such as {text}."
        )
    return text


def parse_run_config(text: str) -> dict[str, Any]:
    """Parse the text of a run's ``config.yaml`` into a plain mapping.

    Raises:
        UserError: It is damaged, or contains YAML tags, anchors or interpolations, which no run
            writes.
    """
    try:
        if any(isinstance(token, FORBIDDEN_TOKENS) for token in yaml.scan(text)):
            raise UserError(
                "refused, the configuration of a run contains no YAML tags and no anchors."
            )
        config: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError("is damaged, or not the configuration of a run.") from error
    config = map_strings(config, reject_interpolation)
    if not isinstance(config, dict) or not isinstance(config.get("output_dir"), str):
        raise UserError("is not the configuration of a run: it has no output_dir.")
    return config


def read_run_config(run: Path, file_name: str = "config.yaml") -> dict[str, Any]:
    """Read the configuration of a run as a mapping, its paths adapted to where it lies now."""
    path = run / file_name
    if not path.is_file():
        raise UserError(f"{run}: not the folder of a run, there is no {file_name} in it.")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{path}: refused, it is larger than 1 MiB.")
    try:
        config = parse_run_config(path.read_text(encoding="utf-8"))
    except (UserError, OSError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, UserError) else "cannot be read."
        raise UserError(f"{path}: {reason}") from error
    output_dir = config["output_dir"]
    if not output_dir:
        return config
    return map_strings(config, lambda text: text.replace(output_dir, str(run)))


REPORTED_PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "regnet-lab")


def _run_git(*arguments: str) -> str | None:
    try:
        return subprocess.check_output(
            ["git", *arguments], cwd=CONFIG_DIR, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_environment() -> dict[str, object]:
    """Return what a result depends on besides its configuration: command, commit, versions."""
    versions: dict[str, str | None] = dict.fromkeys(REPORTED_PACKAGES)
    for package in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "command": sys.argv,
        "git_commit": _run_git("rev-parse", "HEAD"),
        "git_changed": bool(_run_git("status", "--porcelain")),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions,
    }


def save_run_metadata(cfg: DictConfig, prefix: str = "") -> None:
    """Write the resolved configuration and ``environment.json`` into the output folder.

    The files of an evaluation have a ``prefix``. Of several processes only rank 0 writes.
    """
    if not is_rank_zero():
        return
    folder = Path(cfg.output_dir)
    write_text(folder / f"{prefix}config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_text(folder / f"{prefix}environment.json", json.dumps(describe_environment(), indent=2))


def load_run_config(run: str) -> DictConfig:
    """Load the configuration of a run, its paths adapted to where it lies now."""
    return OmegaConf.create(read_run_config(Path(run)))


def resume_config(cfg: DictConfig) -> DictConfig:
    """Load the configuration of the run to resume, changed by plain ``key=value`` overrides.

    ``trusted_packages`` is taken from the command line only, never from the run.
    """
    run = load_run_config(cfg.resume)
    if not Path(run.output_dir, "checkpoints", "last.ckpt").is_file():
        raise UserError(f"{cfg.resume}: cannot be resumed, there is no checkpoints/last.ckpt.")
    OmegaConf.set_struct(run, True)
    for override in HydraConfig.get().overrides.task:
        key, _, _ = override.partition("=")
        if key in ("resume", "trusted_packages"):
            continue
        if key[0] in "+~" or OmegaConf.is_config(OmegaConf.select(run, key)):
            raise UserError(f"resume: {override} cannot change a run; give plain key=value only.")
        OmegaConf.update(run, key, OmegaConf.select(cfg, key))
    run.trusted_packages = cfg.trusted_packages
    return run
