"""What the three commands share: one sentence for a user's mistake, run folders, resuming.

Imports nothing heavy, so that ``--help`` is quick.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.config.compose import CONF, left_out
from regnet_lab.errors import UserError


def sentence(error: Exception) -> str:
    """The message on one line, without a loader worker's traceback or Hydra's chatter."""
    text = str(error).rsplit("UserError: ", 1)[-1]
    if isinstance(error.__cause__, OmegaConfBaseException | HydraException):
        text += " " + str(error.__cause__)
    for chatter in ("Config search path", "full_key:", "object_type="):
        text = text.split(chatter)[0]
    return " ".join(text.split())


def typed(main: Callable[[], object]) -> None:
    """Run a command as the user typed it."""
    sys.argv[1:] = left_out(sys.argv[1:])
    main()


def one_of_several(
    command: str, task: Callable[[DictConfig], float | None], cfg: DictConfig
) -> float | None:
    """Do a job of a sweep."""
    from regnet_lab.cli import multirun

    return multirun.job(command, task, cfg)


def command(name: str) -> Callable[[Callable[[DictConfig], float | None]], Callable[[], None]]:
    """Make a Hydra command of a function of the configuration ``conf/<name>.yaml``.

    A mistake of the user's ends with one sentence and exit code 2; HYDRA_FULL_ERROR=1 shows the
    traceback instead.
    """

    def decorate(task: Callable[[DictConfig], float | None]) -> Callable[[], None]:
        full = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"

        def told(function: Callable, *args: object) -> float | None:
            try:
                return function(*args)
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if full:
                    raise
                sys.stderr.write(f"{name}: {sentence(error)}\n")
                sys.exit(2)

        @functools.wraps(task)
        def job(cfg: DictConfig) -> float | None:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it looks for fonts
            several = HydraConfig.get().mode == RunMode.MULTIRUN  # of which Hydra tells at the end
            return one_of_several(name, task, cfg) if several else told(task, cfg)

        os.environ["HYDRA_FULL_ERROR"] = "1"
        main = hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)
        return functools.partial(typed, functools.partial(told, main))

    return decorate
