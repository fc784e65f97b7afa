"""Paths and helpers shared by several test modules."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
