"""Package the network of a training run as pretrained weights with a card.

``python -m regnet_lab.cli.package_weights outputs/<run> weights/general_3d.safetensors`` writes the
weights and, beside them, the card ``general_3d.json`` (:mod:`regnet_lab.models.general`).
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from omegaconf import OmegaConf

from regnet_lab.config.checkpoints import find_checkpoint, read_weights
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.errors import UserError
from regnet_lab.utils.atomic_io import write_bytes, write_text
from regnet_lab.utils.paths import NETWORK_PREFIX


def package_weights(run: str, path: Path, checkpoint: str = "last") -> dict[str, Any]:
    """Write the network of a run as safetensors, and its card; return the card."""
    cfg, source = load_run_config(run), find_checkpoint(run, checkpoint)
    tensors = {
        name.removeprefix(NETWORK_PREFIX): tensor.contiguous()
        for name, tensor in read_weights(source).items()
        if name.startswith(NETWORK_PREFIX)
    }
    content = safetensors.torch.save(tensors)
    made = json.loads((Path(run) / "environment.json").read_text(encoding="utf-8"))
    made["command"] = ["train.py", *(word for word in made["command"][1:] if "/" not in word)]
    card = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "ndim": cfg.ndim,
        "voxels": math.prod(cfg.data.dataset.shape),
        "model": OmegaConf.to_container(cfg.module.model),
        "loss": OmegaConf.to_container(cfg.module.losses),
        "data": OmegaConf.to_container(cfg.data.dataset),
        "seed": cfg.seed,
        "steps": torch.load(source, "cpu", weights_only=True)["global_step"],
        "batch_size": cfg.data.batch_size,
        "made": made,
    }
    write_bytes(path, content)
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return card


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Package the network of a training run as pretrained weights."
    )
    parser.add_argument("run", help="directory of a training run")
    parser.add_argument("output", type=Path, help="file, such as weights/general_3d.safetensors")
    parser.add_argument("--checkpoint", default="last", help="best, last or a file")
    arguments = parser.parse_args()
    try:
        card = package_weights(arguments.run, arguments.output, arguments.checkpoint)
    except UserError as error:
        parser.error(str(error))
    sys.stdout.write(f"{arguments.output}: {card['steps']} steps, sha256 {card['sha256']}\n")


if __name__ == "__main__":
    main()
