"""A run's configuration back from its folder, which may be a stranger's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.errors import UserError

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
