"""Explain keys and choices that a configuration does not have, by the most similar one it has.

Imports nothing heavy, so that ``--help`` is quick.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.overrides import TEXT_KEYS
from regnet_lab.errors import UserError

MISSING_KEY = re.compile(r"Could not override '([^']+)'")
MISSING_CHOICE = re.compile(r"Could not (?:find|load) '([^']+)/([^/']+)'")
MAY_BE_WORDS = ("devices", "precision", *TEXT_KEYS)  # auto, bf16-mixed; file names


def list_choices(group: str) -> list[str]:
    """Return the choices of a configuration group; empty if there is no such group."""
    return sorted(path.stem for path in Path(CONFIG_DIR, group).glob("*.yaml"))


def list_groups() -> list[str]:
    """Return the names of the configuration groups."""
    return [path.name for path in Path(CONFIG_DIR).iterdir() if path.is_dir()]


def suggest(word: str, words: Sequence[str]) -> str:
    """Return "; did you mean <the most similar of words>?" or "." if none is similar.

    >>> suggest("modl", ["model", "data"])
    '; did you mean model?'
    """
    similar = get_close_matches(word, words, 1)
    return f"; did you mean {similar[0]}?" if similar else "."


def iterate_keys(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the dotted names and values of nested mappings, outer ones included."""
    for key, value in node.items() if isinstance(node, dict) else ():
        name = f"{prefix}.{key}".lstrip(".")
        yield name, value
        yield from iterate_keys(value, name)


def compose_defaults(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return all keys and values of a command for the groups that ``words`` choose."""
    groups = {*list_groups()}
    chosen = [w for w in words if w.lstrip("+~").partition("=")[0].partition("@")[0] in groups]
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        try:
            cfg = compose(name, chosen)
        except (HydraException, OmegaConfBaseException):
            cfg = compose(name)
    return dict(iterate_keys(OmegaConf.to_container(cfg)))


def explain_hydra_error(text: str, name: str, words: Sequence[str]) -> str | None:
    """Explain an error of Hydra about an unknown key or choice; None: it is about something else.

    ``text`` is its message and ``words`` are the overrides of the command ``name``.
    """
    if choice := MISSING_CHOICE.search(text):
        group, wrong = choice.groups()
        choices = list_choices(group)
        if choices:
            listed = ", ".join(choices)
            return f"{group}={wrong}: no such choice{suggest(wrong, choices)} Choices: {listed}."
    if key := MISSING_KEY.search(text):
        known = [*compose_defaults(name, words), *list_groups()]
        return f"there is no key {key[1]}{suggest(key[1], known)} All keys: {name}.py --help"
    return None


def check_numbers(name: str, overrides: Sequence[str]) -> None:
    """Raise a UserError for a word given to a key whose default is a number."""
    parser, words = OverridesParser.create(), {}
    for text in overrides:
        override = parser.parse_override(text)
        value = None if override.is_sweep_override() else override.value()
        if isinstance(value, str) and "${" not in value:
            words[override.key_or_group] = value
    words = {key: word for key, word in words.items() if key.rpartition(".")[2] not in MAY_BE_WORDS}
    defaults = compose_defaults(name, overrides) if words.keys() - {*list_groups()} else {}
    for key, word in words.items():
        default = defaults.get(key)
        if isinstance(default, int | float) and not isinstance(default, bool):
            raise UserError(f"{key}={word} must be a number, such as {default}.")
