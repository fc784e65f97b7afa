"""The canary: a folder that exists if code of a malicious file ran."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from regnet_lab.config.instantiate import instantiate_config

ReadCall = Callable[[], object]
# (folder to write the file to, canary) -> call that reads the file
MaliciousFile = Callable[[Path, Path], ReadCall]


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def code(canary: Path) -> str:
    """Python that makes the canary."""
    return f"__import__('os').mkdir({str(canary)!r})"


def pickled(canary: Path) -> Iterator[tuple[str, object]]:
    """The canary in several pickles."""
    yield "os.mkdir", Canary(os.mkdir, str(canary))
    yield "os.system", Canary(os.system, f"mkdir {canary}")
    yield "builtins.eval", Canary(eval, code(canary))
    yield "builtins.exec", Canary(exec, code(canary))
    yield "functools.partial", Canary(partial(os.mkdir, str(canary)))
    yield "getattr", Canary(getattr(os, "makedirs"), str(canary))  # noqa: B009
    yield "build", Canary(instantiate_config, OmegaConf.create({"_target_": "os.mkdir"}))
    yield "numpy", Canary(np.load, str(canary))
