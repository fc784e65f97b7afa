"""Turn functions into Hydra commands whose errors are one message.

Imports nothing heavy, so that ``--help`` is quick.
"""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from regnet_lab.cli.help import print_help
from regnet_lab.cli.suggestions import check_numbers, explain_hydra_error
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.folders import claim_output_dir, refuse_links
from regnet_lab.config.overrides import (
    SWEEP_FLAGS,
    list_overrides,
    list_run_folders,
    prepare_overrides,
)
from regnet_lab.errors import UserError
from regnet_lab.utils.text import escape_control_characters

INTERRUPTED = 128 + signal.SIGINT  # exit code
HELP_FLAGS = {"-h", "--help"}
Task = Callable[[DictConfig], float | None]


def format_error(error: Exception, name: str) -> str:
    """Return the message on one line, without worker tracebacks and Hydra's search paths."""
    text = str(error).rsplit("UserError: ", 1)[-1]
    if explanation := explain_hydra_error(text, name, list_overrides(sys.argv[1:])):
        return explanation
    if isinstance(error.__cause__, OmegaConfBaseException | HydraException):
        text += " " + str(error.__cause__)
    for detail in ("Config search path", "full_key:", "object_type="):
        text = text.split(detail)[0]
    return escape_control_characters(" ".join(text.split()))


def run_and_report(
    name: str, show_traceback: bool, function: Callable[..., float | None], *args: object
) -> float | None:
    """Call a function; after a user's mistake print one message and exit with code 2.

    An interrupt (SIGINT) ends with code 130.
    """
    try:
        return function(*args)
    except KeyboardInterrupt:
        if show_traceback:
            raise
        sys.stderr.write(f"{name}: interrupted\n")
        sys.exit(INTERRUPTED)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if show_traceback:
            raise
        sys.stderr.write(f"{name}: {format_error(error, name)}\n")
        sys.exit(2)


def hydra_command(
    name: str, positional_images: bool = False
) -> Callable[[Task], Callable[[], object]]:
    """Return a decorator that turns a function of ``conf/<name>.yaml`` into a Hydra command.

    With ``positional_images``, words without a key are the fixed and the moving image.

    A user's mistake ends with one message and exit code 2; HYDRA_FULL_ERROR=1 shows the traceback
    instead.  ``--help`` lists all keys with their comments.
    """

    def decorate(task: Task) -> Callable[[], object]:
        show_traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
        report = functools.partial(run_and_report, name, show_traceback)

        @functools.wraps(task)
        def run_job(cfg: DictConfig) -> float | None:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # font search messages
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                return report(run_task, task, cfg, name)
            from regnet_lab.cli import multirun

            return multirun.run_job(name, task, cfg)  # Hydra reports failed jobs at the end

        os.environ["HYDRA_FULL_ERROR"] = "1"
        run_hydra = hydra.main(CONFIG_DIR, name, "1.3")(run_job)
        return functools.partial(report, run_command_line, name, run_hydra, positional_images)

    return decorate


def run_task(task: Task, cfg: DictConfig, name: str) -> float | None:
    """Run a task whose files go to Hydra's folder, which it locks, or to the current one."""
    from regnet_lab.utils.distributed import is_rank_zero

    in_own_folder = HydraConfig.get().run.dir != "." and is_rank_zero()
    with claim_output_dir(cfg, f"{name}.log") if in_own_folder else nullcontext():
        return task(cfg)


def run_command_line(name: str, run_hydra: Callable[[], None], positional_images: bool) -> None:
    """Run a Hydra command, or print its help, for the words of the command line."""
    sys.argv[1:] = words = prepare_overrides(sys.argv[1:], positional_images)
    overrides = list_overrides(words)
    check_numbers(name, overrides)
    if name != "register" and not SWEEP_FLAGS & {*words}:
        for override in overrides:  # Hydra's own folder, which holds the log
            if override.startswith("output_dir=") and override != "output_dir=null":
                sys.argv.append(f"hydra.run.dir={override.removeprefix('output_dir=')}")
    for run in list_run_folders(overrides):  # before Hydra writes a log there
        refuse_links(Path(run))
    if HELP_FLAGS & set(words):
        print_help(name, words)
    else:
        run_hydra()
