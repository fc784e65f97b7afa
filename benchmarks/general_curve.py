"""Dice on unseen pairs against training steps.

REGNET_LAB_DATA=... python benchmarks/general_curve.py <successive runs of experiment=general_3d>

For every snapshot and the end of the runs, each continuing the previous one: mean Dice of task04's
40 pairs without any alignment; writes docs/pictures/general_curve.png.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from regnet_lab.config.checkpoints import load_weights
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.config.run_dir import load_run_config
from regnet_lab.metrics import score_validation
from regnet_lab.ops.pairs import apply_displacement

PICTURE = Path(CONFIG_DIR).parent / "docs/pictures/general_curve.png"


def dice(model: nn.Module, pairs: list) -> float:
    """Compute the mean Dice over the pairs."""
    with torch.no_grad():
        answers = [
            apply_displacement(p, model(p["fixed"], p["moving"])).displacement for p in pairs
        ]
    scores = [score_validation(p, u)["dice"] for p, u in zip(pairs, answers, strict=True)]
    return sum(scores) / len(scores)


def main() -> None:
    """Print the table and write the figure."""
    torch.set_num_threads(1)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", ["data=task04"])
    pairs = list(instantiate_config(cfg.data).make_eval_dataloader("val"))
    module = instantiate_config(load_run_config(sys.argv[1]).module)
    curve, before = [(0, dice(module.model.eval(), pairs))], 0
    for run in sys.argv[1:]:
        files = [*Path(run).glob("snapshots/*.ckpt"), Path(run) / "checkpoints/last.ckpt"]
        checkpoints = {torch.load(path, weights_only=True)["global_step"]: path for path in files}
        for step, path in sorted(checkpoints.items()):
            load_weights(module, path)
            curve.append((before + step, dice(module.model.eval(), pairs)))
            print(*curve[-1], flush=True)
        before = curve[-1][0]
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    axes.plot(*zip(*curve, strict=True), marker="o")
    axes.set(xlabel="steps of two generated pairs", ylabel="Dice, task04's 40 pairs")
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
