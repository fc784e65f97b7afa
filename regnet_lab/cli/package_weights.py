"""The networks that come with the project: a file of tensors each, and a card of what it is.

``python -m regnet_lab.shipped outputs/<run> weights/general_3d.pt`` makes both of a run.  The card,
``general_3d.json``, has the file's SHA-256, the model's configuration, the voxels it was trained on
and how it was made; a file that its card does not know is not loaded.
"""

import argparse
import hashlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from regnet_lab.config.checkpoints import checkpoint_path, read_weights
from regnet_lab.config.run_dir import kept
from regnet_lab.errors import UserError
from regnet_lab.models.general import PREFIX
from regnet_lab.utils.atomic_io import write_bytes, write_text


def ship(run: str, path: Path, checkpoint: str = "last") -> dict[str, Any]:
    """Write the network of a run and its card.

    Returns:
        The card.

    Raises:
        UserError: The run has no such checkpoint, or the folder is no good.
    """
    cfg, source = kept(run), checkpoint_path(run, checkpoint)
    weights = read_weights(source)
    tensors = {k.removeprefix(PREFIX): w for k, w in weights.items() if k.startswith(PREFIX)}
    file = io.BytesIO()
    torch.save(tensors, file)
    made = json.loads((Path(run) / "environment.json").read_text(encoding="utf-8"))
    made["command"] = ["train.py", *(word for word in made["command"][1:] if "/" not in word)]
    data = OmegaConf.to_container(cfg.data.dataset)
    card = {
        "sha256": hashlib.sha256(file.getvalue()).hexdigest(),
        "ndim": cfg.ndim,
        "voxels": math.prod(cfg.data.dataset.shape),
        "model": OmegaConf.to_container(cfg.module.model),
        "loss": OmegaConf.to_container(cfg.module.losses),
        "data": data,
        "seed": cfg.seed,
        "steps": torch.load(source, "cpu", weights_only=True)["global_step"],
        "batch_size": cfg.data.batch_size,
        "made": made,
    }
    write_bytes(path, file.getvalue())
    write_text(path.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return card


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Make a shipped network of a run.")
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("path", type=Path, help="such as weights/general_3d.pt")
    parser.add_argument("--checkpoint", default="last", help="best, last or a file")
    arguments = parser.parse_args()
    try:
        card = ship(arguments.run, arguments.path, arguments.checkpoint)
    except UserError as error:
        parser.error(str(error))
    sys.stdout.write(f"{arguments.path}: {card['steps']} steps, sha256 {card['sha256']}\n")


if __name__ == "__main__":
    main()
