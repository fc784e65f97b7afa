"""Deformable medical image registration: a pair goes in, a model answers with fields."""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """``regnet_lab.register`` when it is asked for, so that the commands start quickly."""
    if name == "register":
        from regnet_lab.registration.api import register

        return register
    raise AttributeError(name)
