"""What the three commands share: one sentence for a user's mistake, run folders, resuming.

Imports nothing heavy, so that ``--help`` is quick.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

ROOTS = Path(__file__).parents[2], Path(sys.prefix) / "share/regnet_lab"  # checkout, installed


CONF = str(next((path for root in ROOTS if (path := root / "conf").is_dir()), ROOTS[0] / "conf"))


OmegaConf.register_new_resolver("first", lambda a, b: a or b, replace=True)


def left_out(words: Sequence[str]) -> list[str]:
    """Overrides with ``group=null`` as Hydra spells it: ``~group``."""
    groups = {f"{folder.name}=null" for folder in Path(CONF).iterdir() if folder.is_dir()}
    return [f"~{word.removesuffix('=null')}" if word in groups else word for word in words]
