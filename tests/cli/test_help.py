"""Tests of ``--help``: it lists all groups and keys, and every key has a comment."""

import subprocess
import sys
import time
from itertools import cycle, islice

import pytest

from regnet_lab.cli.help import compose_with_comments, format_help
from tests.helpers import CONF, ROOT

COMMANDS = ("train", "evaluate", "register")
GROUPS = {
    "train": (
        "augment",
        "callbacks",
        "data",
        "loss",
        "metrics",
        "model",
        "training_optimizer",
        "scheduler",
    ),
    "evaluate": ("task", "metrics"),
    "register": ("align", "optimizer"),
}
NAMED = {"loss", "losses", "fields", "weights", "datasets", "deformations", "stages", "models"}
NAMED |= {"parameter_maps", "parameters", "labels", "landmark_scales", "epochs", "options"}


def list_choices(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def combine_choices(command):
    """Yield overrides that together use every choice of the command's groups."""
    choices = {group: list_choices(group) for group in GROUPS[command]}
    count = max(map(len, choices.values()))
    columns = [
        [f"{group}={name}" for name in islice(cycle(names), count)]
        for group, names in choices.items()
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def find_uncommented(node, comments, prefix=""):
    for key, value in node.items():
        name = f"{prefix}.{key}".lstrip(".")
        is_name = prefix.split(".")[-1] in NAMED
        if not (str(key).startswith("_") or is_name or name in comments):
            yield name
        if isinstance(value, dict):
            yield from find_uncommented(value, comments, name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_every_choice_has_a_comment(command):
    from omegaconf import OmegaConf

    uncommented = {}
    for overrides in combine_choices(command):
        if "callbacks=evaluate" in overrides:
            overrides.remove("callbacks=evaluate")
        cfg, _, comments = compose_with_comments(command, overrides)
        for name in find_uncommented(OmegaConf.to_container(cfg), comments):
            uncommented.setdefault(name, overrides)
    assert not uncommented


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_groups_and_commented_keys_without_heavy_imports(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{command}.py', '--help', 'model=gradirn']\n"
        f"runpy.run_path('{command}.py', run_name='__main__')\n"
        "assert not {'torch', 'pandas', 'SimpleITK', 'matplotlib'} & set(sys.modules)"
    )
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 10  # about half a second on an idle machine
    assert f"python {command}.py " in result.stdout
    assert "  model: affine, " in result.stdout
    assert "line_search_steps: 0  # at evaluation, most halvings" in result.stdout


def test_help_follows_the_chosen_groups():
    assert "  data/images@data.dataset.images: chessboards, files" in format_help(
        "train", ["data=chessboard"]
    )
    assert "data.dataset.images" not in format_help("train", [])
    assert "scheduler: cosine" in format_help("train", ["~scheduler"])


def test_a_mistake_in_the_overrides_of_help_is_one_sentence(command):
    result = command("train.py", "--help", "model=nosuchnet")
    assert result.returncode == 2
    assert "nosuchnet" in result.stderr
    assert "Traceback" not in result.stderr
