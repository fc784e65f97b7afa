"""A file imports only from layers above its own; the arrows of docs/design.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "durable", "together", "profile", "memory", "schedules"}
    | {"ops", "windows", "similarity", "cost_volume"},
    {"pair", "sizes", "world", "transforms", "align"},
    {"losses", "metrics", "models", "data", "atlas"},
    {"module", "refine"},
    {"report", "callbacks", "tasks", "submission", "model_grid", "registration", "delivery"},
    {"build", "cli", "kept", "weights", "shipped", "sweep", "agreement", "mishaps"}
    | {"evaluation", "registrar", "desk", "export"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((ROOT / "regnet_lab").rglob("*.py"))


def part(path):
    return path.relative_to(ROOT / "regnet_lab").parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".") for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path):
    own = part(path)
    if own == "__init__":
        return
    for package, *rest in imported(path):
        if package == "regnet_lab" and rest and rest[0] in LEVEL:
            assert LEVEL[rest[0]] <= LEVEL[own], (own, rest[0])
            assert LEVEL[rest[0]] < LEVEL[own] or rest[0] == own or LEVEL[own] != 2, (own, rest[0])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_models_see_tensors_only(path):
    if part(path) == "models":
        seen = {".".join(name[:2]) for name in imported(path)}
        assert not seen & {"regnet_lab.pair", "pytorch_lightning.LightningModule", "omegaconf"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_grid_sample_is_called_in_ops_alone(path):
    assert part(path) == "ops" or "grid_sample(" not in path.read_text(encoding="utf-8")
