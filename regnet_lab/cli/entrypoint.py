"""Turn functions into Hydra commands whose errors are one message.

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

from regnet_lab.cli.help import print_help
from regnet_lab.config.compose import CONFIG_DIR, expand_null_overrides
from regnet_lab.errors import UserError

HELP_FLAGS = {"-h", "--help"}
Task = Callable[[DictConfig], float | None]


def format_error(error: Exception) -> str:
    """Return the message on one line, without worker tracebacks and Hydra's search paths."""
    text = str(error).rsplit("UserError: ", 1)[-1]
    if isinstance(error.__cause__, OmegaConfBaseException | HydraException):
        text += " " + str(error.__cause__)
    for detail in ("Config search path", "full_key:", "object_type="):
        text = text.split(detail)[0]
    return " ".join(text.split())


def run_and_report(
    name: str, show_traceback: bool, function: Callable[..., float | None], *args: object
) -> float | None:
    """Call a function; after a user's mistake print one message and exit with code 2."""
    try:
        return function(*args)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if show_traceback:
            raise
        sys.stderr.write(f"{name}: {format_error(error)}\n")
        sys.exit(2)


def hydra_command(name: str) -> Callable[[Task], Callable[[], None]]:
    """Return a decorator that turns a function of ``conf/<name>.yaml`` into a Hydra command.

    A user's mistake ends with one message and exit code 2; HYDRA_FULL_ERROR=1 shows the traceback
    instead.  ``--help`` lists all keys with their comments.
    """

    def decorate(task: Task) -> Callable[[], None]:
        show_traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
        report = functools.partial(run_and_report, name, show_traceback)

        @functools.wraps(task)
        def run_job(cfg: DictConfig) -> float | None:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # font search messages
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                return report(task, cfg)
            from regnet_lab.cli import multirun

            return multirun.run_job(name, task, cfg)  # Hydra reports failed jobs at the end

        os.environ["HYDRA_FULL_ERROR"] = "1"
        run_hydra = hydra.main(CONFIG_DIR, name, "1.3")(run_job)

        def main() -> None:
            sys.argv[1:] = words = expand_null_overrides(sys.argv[1:])
            if HELP_FLAGS & set(words):
                report(print_help, name, words)
            else:
                report(run_hydra)

        return main

    return decorate
