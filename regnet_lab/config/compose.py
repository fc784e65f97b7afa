"""Locate the configuration and register its resolvers.

Imports nothing heavy, so that ``--help`` is quick.
"""

import re
from pathlib import Path

from omegaconf import OmegaConf

from regnet_lab.errors import UserError
from regnet_lab.utils.paths import CONFIG_DIR as CONFIG_DIR


def get_data_name_of_run(run: str | None) -> str:
    """Return the name of the data set that a run was trained on.

    ``data`` if there is no run or its configuration cannot be read: the command then reports the
    reason. Characters that could lead to another folder are replaced.
    """
    from regnet_lab.config.run_dir import read_run_config

    try:
        name = str(read_run_config(Path(run or ""))["data_name"])
    except (UserError, KeyError):
        return "data"
    return re.sub(r"[^\w.-]", "_", name)


def make_checkpoint_suffix(checkpoint: str) -> str:
    """Return the ending of an evaluation folder's name: empty for the best checkpoint."""
    return "" if checkpoint == "best" else f"-{Path(str(checkpoint)).stem}"


OmegaConf.register_new_resolver("coalesce", lambda a, b: a or b, replace=True)
OmegaConf.register_new_resolver("run_data_name", get_data_name_of_run, replace=True)
OmegaConf.register_new_resolver("checkpoint_suffix", make_checkpoint_suffix, replace=True)
