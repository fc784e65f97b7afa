"""Print the help of a command: its configuration groups, and every key with its comment.

Comments are read from the YAML files that make up the configuration.  Imports nothing heavy, so
that ``--help`` is quick.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from regnet_lab.config.compose import CONFIG_DIR

END_OF_DOCUMENT = "...\n"  # written by YAML after a scalar
EXAMPLE = "python "  # starts the commands in the first comment lines of a file


def read_header(text: str) -> tuple[str, list[str]]:
    """Return the description and the example commands in the first comment lines of a file."""
    header = takewhile(lambda line: line.startswith("#"), text.splitlines())
    lines = [line.removeprefix("#").strip() for line in header if "@package" not in line]
    examples = [line for line in lines if line.startswith(EXAMPLE)]
    start = lines.index(examples[0]) if examples else len(lines)
    return " ".join(lines[:start]), examples


def read_comments(text: str, package: str) -> dict[str, str]:
    """Return the comments of the keys of a YAML text, by their dotted names below ``package``.

    The comment of a key ends its line, or stands in the lines directly above it.

    >>> read_comments("lr: 0.1 # learning rate", "training_optimizer")
    {'training_optimizer.lr': 'learning rate'}
    """
    lines = text.splitlines()
    comments = {}
    for name, key, value in iterate_keys(yaml.compose(text), package):
        if comment := _comment_after(lines, key, value) or _comment_above(lines, key):
            comments[name] = comment
    return comments


def iterate_keys(node: Any, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Iterate over the keys of nested YAML block mappings: dotted name, key and value."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return
    for key, value in node.value:
        is_merge = key.tag == "tag:yaml.org,2002:merge"
        name = prefix if is_merge else f"{prefix}.{key.value}".lstrip(".")
        if not is_merge:
            yield name, key, value
        yield from iterate_keys(value, name)


def _comment_after(lines: list[str], key: yaml.Node, value: yaml.Node) -> str:
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    remainder = lines[end.line][end.column :] if end.line < len(lines) else ""
    return remainder.partition("#")[2].strip()


def _comment_above(lines: list[str], key: yaml.Node) -> str:
    indent = " " * key.start_mark.column + "# "
    number = key.start_mark.line
    above = takewhile(lambda line: line.startswith(indent), reversed(lines[:number]))
    comments = [line.removeprefix(indent) for line in above]
    return "" if len(comments) == number else " ".join(reversed(comments))


def compose_with_comments(
    name: str, overrides: Sequence[str]
) -> tuple[DictConfig, list[ResultDefault], dict[str, str]]:
    """Compose a configuration; return it with its files and the comments of its keys.

    A key whose value is a file of its own has the description of that file as its comment.
    """
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose(name, list(overrides))
        loader = GlobalHydra.instance().config_loader()
        files = loader.compute_defaults_list(name, list(overrides), RunMode.RUN).defaults
    descriptions: dict[str, str] = {}
    comments: dict[str, str] = {}
    for file in files:
        path, package = Path(CONFIG_DIR, f"{file.config_path}.yaml"), file.package or ""
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            key = package or str(file.config_path).partition("/")[0]
            descriptions[key] = read_header(text)[0].partition(". ")[0]
            comments |= read_comments(text, package)
    return cfg, files, descriptions | comments


def list_groups(name: str, files: Sequence[ResultDefault]) -> dict[str, list[str]]:
    """Return the choices of the groups that a command uses."""
    text = Path(CONFIG_DIR, f"{name}.yaml").read_text(encoding="utf-8")
    entries = [entry for entry in yaml.safe_load(text)["defaults"] if isinstance(entry, dict)]
    groups = {key: [value] for entry in entries for key, value in entry.items()}
    nested = [str(file.override_key) for file in files if "@" in str(file.override_key)]
    for key in (*groups, *nested):
        choices = sorted(path.stem for path in Path(CONFIG_DIR, key.split("@")[0]).glob("*.yaml"))
        if choices:
            groups[key] = choices + (["null"] if groups.get(key) == [None] else [])
    return {key: choices for key, choices in groups.items() if not key.startswith("override")}


def format_keys(cfg: DictConfig, comments: dict[str, str], prefix: str = "") -> Iterator[str]:
    """Format a configuration as YAML lines with their comments; interpolations stay as they are."""
    indent = "  " * (prefix.count(".") + 1 if prefix else 0)
    values = OmegaConf.to_container(cfg)
    assert isinstance(values, dict)
    for key, value in ((str(k), v) for k, v in values.items()):
        name = f"{prefix}.{key}".lstrip(".")
        comment = f"  # {comments[name]}" if comments.get(name) else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:{comment}"
            yield from format_keys(cfg[key], comments, name)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
            yield f"{indent}{key}: {text.removesuffix(END_OF_DOCUMENT).strip()}{comment}"


def format_help(name: str, overrides: Sequence[str]) -> str:
    """Return the help of a command for the given overrides."""
    cfg, files, comments = compose_with_comments(name, overrides)
    header = Path(CONFIG_DIR, f"{name}.yaml").read_text(encoding="utf-8")
    description, examples = read_header(header)
    groups = [f"  {key}: {', '.join(c)}" for key, c in list_groups(name, files).items()]
    sections = [
        description,
        "\n  ".join(["Examples:", *examples]),
        "\n".join(["Groups, chosen with group=choice (group=null leaves one out):", *groups]),
        "\n".join(["Keys, set with key=value:", "", *format_keys(cfg, comments)]),
        "The help of a choice: add it, such as model=gradirn --help. Hydra's options: --hydra-help",
    ]
    return "\n\n".join(sections) + "\n"


def print_help(name: str, words: Sequence[str]) -> None:
    """Print the help of a command for the words of its command line."""
    sys.stdout.write(format_help(name, [word for word in words if not word.startswith("-")]))
