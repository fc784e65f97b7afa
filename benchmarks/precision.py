"""Effect of half precision: every model trained briefly in 32, bf16-mixed and 16-mixed.

``python benchmarks/precision.py``; options: ``--models gradirn faim``, ``--seeds 5``,
``--ndim 3 --side 40 --steps 500``, ``--set training_optimizer.lr=1e-4``.

All trainings use the same phantoms; a seed determines the initial weights and the order of the
pairs and is shared by the precisions, so that differences d are paired.  Lightning replaces
``trainer.precision=16-mixed`` by bf16-mixed on a CPU; here its plugin is passed, so that float16
autocast and gradient scaling run there, too.

Prints the Dice of held-out pairs, mean and standard deviation over seeds, and for each half
precision the mean of d (half minus 32) with its 95 % interval (Student's t), and whether d is
*within* noise: the interval contains zero, or the mean of d is at most the standard deviation of 32
over seeds.  Otherwise it is *better* or *worse*.

Each finished training is a row of outputs/benchmarks/precision.csv and is not repeated with the
same settings, so the benchmark can be interrupted and extended.

``--gradients`` trains nothing: it prints for every model the cosine between the gradient of the
first loss in half precision and in 32, and the same for weights rounded to bfloat16.
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning import seed_everything
from pytorch_lightning.plugins import MixedPrecision
from scipy import stats
from torch.utils.data import default_collate

from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.errors import UserError
from regnet_lab.utils.runtime import silence_lightning

MODELS = sorted(path.stem for path in Path(CONFIG_DIR, "model").glob("*.yaml"))
TORCH = torch.__version__
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCORES = ("val/dice", "val/tre_mm", "val/loss")
PRECISIONS = ["32", "bf16-mixed", "16-mixed"]
SETTINGS = ("model", "precision", "seed", "ndim", "side", "steps", "set", "torch")


def plugins(precision: str) -> list[MixedPrecision]:
    """Return the precision plugin of Lightning; none for ``32``."""
    scaler = torch.amp.GradScaler(DEVICE) if precision == "16-mixed" else None
    return [] if precision == "32" else [MixedPrecision(precision, DEVICE, scaler)]  # type: ignore


def composed(model: str, seed: int, args: argparse.Namespace) -> DictConfig:
    """Compose the configuration of a training."""
    overrides = [
        f"model={model}",
        "loss=ncc_dice",
        f"ndim={args.ndim}",
        f"data.dataset.shape={args.side}",
        "data.dataset.num_pairs=16",
        f"data.epoch_size={2 * args.steps}",
        "data.batch_size=2",
        "data.dataset.seed=0",
        f"seed={seed}",
        "trainer.max_epochs=1",
        "trainer.logger=false",
        "~trainer.precision",
        "trainer.enable_progress_bar=false",
        f"trainer.accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}",
        *args.set,
    ]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg.output_dir = tempfile.gettempdir()
    return cfg


def trained(model: str, precision: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train and return scores of held-out pairs and seconds."""
    cfg = composed(model, seed, args)
    seed_everything(seed, verbose=False)
    data, module = instantiate_config(cfg.data), instantiate_config(cfg.module)
    trainer = instantiate_config(
        cfg.trainer, plugins=plugins(precision), enable_checkpointing=False
    )
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    numbers = {name: float(trainer.callback_metrics[name]) for name in SCORES}
    return {**numbers, "seconds": seconds}


def select_rows(path: Path, row: dict[str, object]) -> pd.DataFrame:
    """Return the rows of the table that match the columns of ``row``."""
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path, dtype={"precision": str, "set": str}, keep_default_na=False)
    return table[(table[list(row)] == pd.Series(row)).all(axis=1)]


def all_trained(model: str, args: argparse.Namespace) -> pd.DataFrame:
    """Return Dice by seed (rows) and precision (columns), training what is missing."""
    dice = {}
    for precision, seed in product(args.precisions, range(args.seeds)):
        settings = (model, precision, seed, args.ndim, args.side, args.steps)
        row = dict(zip(SETTINGS, (*settings, " ".join(args.set), TORCH), strict=True))
        done = select_rows(args.output, row)
        if done.empty:
            done = pd.DataFrame([row | trained(model, precision, seed, args)])
            args.output.parent.mkdir(parents=True, exist_ok=True)
            done.to_csv(args.output, mode="a", header=not args.output.is_file(), index=False)
        dice[precision, seed] = float(done["val/dice"].iloc[0])
    return pd.Series(dice).unstack(0)[args.precisions]


def compared(full: pd.Series, half_precision: pd.Series) -> str:
    """Return the mean paired difference, half its 95 % interval, and the verdict."""
    apart = half_precision - full
    mean, error = apart.mean(), apart.sem()
    wide = stats.t.ppf(0.975, len(apart) - 1) * error
    within = abs(mean) <= max(wide, full.std())
    verdict = "within" if within else "better" if mean > 0 else "worse"
    return f"{mean:+.3f} ± {wide:.3f}, {verdict}"


def slope(model: str, precision: str, args: argparse.Namespace) -> torch.Tensor:
    """Compute the gradient of the first loss with respect to all weights of seed 0.

    ``rounded``: in float32, with weights rounded to bfloat16.
    """
    cfg = composed(model, 0, args)
    seed_everything(0, verbose=False)
    pairs, module = (
        instantiate_config(cfg.data).make_dataset("train"),
        instantiate_config(cfg.module),
    )
    module.log_dict = lambda *_, **__: None
    if precision == "rounded":
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(module.parameters()).bfloat16().float(),
            module.parameters(),
        )
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    batch = default_collate([pairs[0], pairs[1]])
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = module.training_step(batch, 0)
    (loss / 128).backward()  # so that float16 does not overflow
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def compare_gradients(args: argparse.Namespace) -> None:
    """Print the cosines of gradients with that of float32."""
    ways = ("bf16-mixed", "16-mixed", "rounded")
    print(f"| model: cosine of gradients | {' | '.join(ways)} |\n|---|--:|--:|--:|")
    for model in args.models:
        if not [*instantiate_config(composed(model, 0, args).module).parameters()]:
            continue
        exact = slope(model, "32", args)
        cosines = [
            torch.cosine_similarity(exact, slope(model, precision, args), dim=0)
            for precision in ways
        ]
        print(f"| {model} | {' | '.join(f'{float(c):.4f}' for c in cosines)} |", flush=True)


def compare_trainings(args: argparse.Namespace) -> None:
    """Train every model in every precision; print Dice and differences."""
    halves = [name for name in args.precisions if name != "32"]
    columns = [*args.precisions, *(f"{name} - 32" for name in halves)]
    print(f"| model: Dice | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for model in args.models:
        try:
            dice = all_trained(model, args)
        except UserError as error:  # nothing to train
            print(error, flush=True)
            continue
        cells = [f"{dice[name].mean():.3f} ± {dice[name].std():.3f}" for name in dice]
        cells += [compared(dice["32"], dice[name]) for name in halves]
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Compare trainings or gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gradients", action="store_true", help="only compare the first ones")
    parser.add_argument("--ndim", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/precision.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    silence_lightning()
    (compare_gradients if args.gradients else compare_trainings)(args)


if __name__ == "__main__":
    main()
