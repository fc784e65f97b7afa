"""Folders in which the files distributed with the package (conf, weights) are looked up."""

import sys
from pathlib import Path

RESOURCE_ROOTS = (  # repository checkout, installed package
    Path(__file__).parents[2],
    Path(sys.prefix) / "share/regnet_lab",
)
CONFIG_DIR = str(
    next((path for root in RESOURCE_ROOTS if (path := root / "conf").is_dir()), RESOURCE_ROOTS[0])
)
# of the network's tensors in a checkpoint of a RegistrationModule
NETWORK_PREFIX = "model."
