"""What half precision costs: every model trained a short while in 32, bf16-mixed and 16-mixed.

``python benchmarks/precision.py``; ``--models gradirn faim`` for some, ``--seeds 5`` for more
certainty, ``--ndim 3 --side 40 --steps 500`` for more work, ``--set optim.lr=1e-4`` for anything
else.  The same phantoms for all; a seed gives the weights at the start and the order of the pairs,
and every precision begins from the same seeds, so that their differences d are in pairs.  Lightning
replaces ``trainer.precision=16-mixed`` by bf16-mixed on a CPU; here its plugin is given, with which
autocast to float16 and the scaling of gradients run there too.

Prints the Dice of held-out pairs, mean and standard deviation over seeds, and for each half
precision the mean of d, half minus 32, with its 95 % interval (Student's t), and whether d is
*within* noise: the interval contains zero, or the mean of d is no larger than the standard
deviation over seeds of 32, that is, than what another seed does.  Otherwise it is *better* or
*worse*.  Writes outputs/benchmarks/precision.json anew after each model; what it has of other
models stays.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning import seed_everything
from pytorch_lightning.plugins import MixedPrecision
from scipy import stats

from regnet_lab.build import build
from regnet_lab.cli import CONF, quieten
from regnet_lab.errors import UserError

MODELS = sorted(path.stem for path in Path(CONF, "model").glob("*.yaml"))
SCORES = ("val/dice", "val/tre_mm", "val/loss")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
Runs = dict[str, list[dict[str, float]]]  # precision: scores for each seed


def plugins(precision: str, device: str) -> list[MixedPrecision]:
    """What trains in half precision; nothing for ``32``."""
    scaler = torch.amp.GradScaler(device) if precision == "16-mixed" else None
    return [] if precision == "32" else [MixedPrecision(precision, device, scaler)]  # type: ignore


def trained(model: str, precision: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Scores of held-out pairs after training, and seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    overrides = [
        f"model={model}",
        "loss=ncc_dice",
        f"ndim={given.ndim}",
        f"data.dataset.shape={given.side}",
        "data.dataset.size=16",
        f"data.epoch_size={2 * given.steps}",
        "data.batch_size=2",
        "data.dataset.seed=0",
        f"seed={seed}",
        "trainer.max_epochs=1",
        "trainer.logger=false",
        "~trainer.precision",
        "trainer.enable_progress_bar=false",
        f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",
        *given.set,
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg.folder = tempfile.gettempdir()
    seed_everything(seed, verbose=False)
    data, module = build(cfg.data), build(cfg.module)
    trainer = build(cfg.trainer, plugins=plugins(precision, device), enable_checkpointing=False)
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    numbers = {name: float(trainer.callback_metrics[name]) for name in SCORES}
    return {**numbers, "seconds": seconds}


def compared(full: np.ndarray, half: np.ndarray) -> tuple[float, float, str]:
    """Mean of the paired difference, half the width of its 95 % interval, and the verdict."""
    apart = half - full
    mean, error = float(apart.mean()), float(stats.sem(apart))
    wide = float(stats.t.ppf(0.975, len(apart) - 1)) * error
    if abs(mean) <= max(wide, float(full.std(ddof=1))):
        return mean, wide, "within"
    return mean, wide, "better" if mean > 0 else "worse"


def row(model: str, runs: Runs) -> str:
    """Dice of each precision, and how far the halves are from full precision."""
    dice = [np.array([run["val/dice"] for run in runs[name]]) for name in PRECISIONS]
    cells = [f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" for values in dice]
    for half in dice[1:]:
        mean, wide, verdict = compared(dice[0], half)
        cells.append(f"{mean:+.3f} ± {wide:.3f}, {verdict}")
    return f"| {model} | {' | '.join(cells)} |"


def main() -> None:
    """Train every model in every precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ndim", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/precision.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    found = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    halves = [f"{name} - 32" for name in PRECISIONS[1:]]
    print(f"| model: Dice | {' | '.join([*PRECISIONS, *halves])} |\n|---" + "|--:" * 5 + "|")
    for model in given.models:
        try:
            runs = {
                name: [trained(model, name, seed, given) for seed in range(given.seeds)]
                for name in PRECISIONS
            }
        except UserError as error:  # nothing to train
            print(error, flush=True)
            continue
        print(row(model, runs), flush=True)
        found |= {"torch": torch.__version__, model: runs}
        given.out.write_text(json.dumps(found, indent=2), "utf-8")


if __name__ == "__main__":
    main()
