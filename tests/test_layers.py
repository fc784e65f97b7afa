"""A module imports only from layers below its own, and models see tensors only."""

import ast

import pytest

from tests.helpers import ROOT

ORDER = [  # lowest first; a module may import from its own layer and from those to the left
    ["errors"],
    ["types"],
    ["ops"],
    ["utils"],
    ["spatial"],
    ["losses"],
    ["metrics"],
    ["config"],
    ["data"],
    ["models"],
    ["visualization"],
    ["training"],
    ["registration"],
    ["evaluation"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
SOURCES = sorted((ROOT / "regnet_lab").rglob("*.py"))


def layer(path):
    return path.relative_to(ROOT / "regnet_lab").parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".") for name in names)


def test_every_module_belongs_to_a_layer():
    assert {layer(path) for path in SOURCES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_order_of_layers(path):
    own = layer(path)
    if own == "__init__":
        return
    for package, *submodules in imported(path):
        if package == "regnet_lab" and submodules and submodules[0] in LEVEL:
            assert LEVEL[submodules[0]] <= LEVEL[own], (
                f"{own} must not import {'.'.join(submodules)}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_models_see_tensors_only(path):
    if layer(path) == "models":
        modules = {".".join(name[:2]) for name in imported(path)}
        assert not modules & {"regnet_lab.types", "pytorch_lightning.LightningModule", "omegaconf"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_grid_sample_is_called_in_ops_alone(path):
    assert layer(path) == "ops" or "grid_sample(" not in path.read_text(encoding="utf-8")
