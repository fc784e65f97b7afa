"""What half precision costs: every model trained a short while in 32, bf16-mixed and 16-mixed.

``python benchmarks/precision.py``; ``--models gradirn faim`` for some, ``--ndim 3 --side 40
--steps 500`` for more.  The same phantoms for all; ``32 again`` begins from other weights and
takes the pairs in another order, and so shows what chance alone makes.  On a CPU Lightning
replaces ``trainer.precision=16-mixed`` by bf16-mixed; here its plugin is given, with which autocast
to float16 and the scaling of gradients run there too.  Prints Dice and TRE of held-out pairs and
the largest difference of a half to the nearer of the two in 32, and writes
outputs/benchmarks/precision.json anew after each model.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from pytorch_lightning import seed_everything
from pytorch_lightning.plugins import MixedPrecision

from regnet_lab.build import build
from regnet_lab.cli import CONF, quieten
from regnet_lab.errors import UserError

MODELS = sorted(path.stem for path in Path(CONF, "model").glob("*.yaml"))
SCORES = ("val/dice", "val/tre_mm", "val/loss")
RUNS = {"32": ("32", 0), "32 again": ("32", 1), "bf16-mixed": ("bf16", 0), "16-mixed": ("16", 0)}


def plugins(half: str, device: str) -> list[MixedPrecision]:
    """What trains in ``bf16`` or ``16``; nothing for ``32``."""
    scaler = torch.amp.GradScaler(device) if half == "16" else None
    return [] if half == "32" else [MixedPrecision(f"{half}-mixed", device, scaler)]  # type: ignore


def trained(model: str, half: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
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
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg.folder = tempfile.gettempdir()
    seed_everything(seed, verbose=False)
    data, module = build(cfg.data), build(cfg.module)
    trainer = build(cfg.trainer, plugins=plugins(half, device), enable_checkpointing=False)
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    numbers = {name: float(trainer.callback_metrics[name]) for name in SCORES}
    return {**numbers, "seconds": seconds}


def row(model: str, runs: dict[str, dict[str, float]]) -> str:
    """Dice and TRE of each, and how far the halves are from full precision."""
    cells = [f"{run['val/dice']:.3f}, {run['val/tre_mm']:.3f}" for run in runs.values()]
    full = [run["val/dice"] for name, run in runs.items() if name.startswith("32")]
    halves = [run["val/dice"] for name, run in runs.items() if not name.startswith("32")]
    apart = max(min(abs(half - one) for one in full) for half in halves)
    return f"| {model} | {' | '.join(cells)} | {abs(full[0] - full[1]):.3f} | {apart:.3f} |"


def main() -> None:
    """Train every model in every precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ndim", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/precision.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    found = {}
    print(f"| model: Dice, TRE (mm) | {' | '.join(RUNS)} | chance, Dice | half, Dice |")
    print("|---" + "|--:" * (len(RUNS) + 2) + "|")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for model in given.models:
        try:
            found[model] = {
                name: trained(model, half, seed, given) for name, (half, seed) in RUNS.items()
            }
        except UserError as error:  # nothing to train
            print(error, flush=True)
            continue
        print(row(model, found[model]), flush=True)
        given.out.write_text(json.dumps({"torch": torch.__version__, **found}, indent=2), "utf-8")


if __name__ == "__main__":
    main()
