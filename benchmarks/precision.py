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
*worse*.  How much may hide in the noise is what the interval says.

Every training is a row of outputs/benchmarks/precision.csv once it is done, and is not done again
when it is asked for with the same settings, so the benchmark can be stopped and widened.

``--gradients`` trains nothing: it prints for every model the cosine between the gradient of the
first loss in half precision and in 32, beside what rounding the weights alone to bfloat16 does.
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

from regnet_lab.config.compose import CONF
from regnet_lab.config.instantiate import build
from regnet_lab.errors import UserError
from regnet_lab.utils.runtime import quieten

MODELS = sorted(path.stem for path in Path(CONF, "model").glob("*.yaml"))
TORCH = torch.__version__
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCORES = ("val/dice", "val/tre_mm", "val/loss")
PRECISIONS = ["32", "bf16-mixed", "16-mixed"]
SETTINGS = ("model", "precision", "seed", "ndim", "side", "steps", "set", "torch")


def plugins(precision: str) -> list[MixedPrecision]:
    """What trains in half precision; nothing for ``32``."""
    scaler = torch.amp.GradScaler(DEVICE) if precision == "16-mixed" else None
    return [] if precision == "32" else [MixedPrecision(precision, DEVICE, scaler)]  # type: ignore


def composed(model: str, seed: int, given: argparse.Namespace) -> DictConfig:
    """The configuration of a training."""
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
        f"trainer.accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}",
        *given.set,
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    cfg.folder = tempfile.gettempdir()
    return cfg


def trained(model: str, precision: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Scores of held-out pairs after training, and seconds."""
    cfg = composed(model, seed, given)
    seed_everything(seed, verbose=False)
    data, module = build(cfg.data), build(cfg.module)
    trainer = build(cfg.trainer, plugins=plugins(precision), enable_checkpointing=False)
    began = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - began
    numbers = {name: float(trainer.callback_metrics[name]) for name in SCORES}
    return {**numbers, "seconds": seconds}


def kept(path: Path, row: dict[str, object]) -> pd.DataFrame:
    """The rows of the table that begin like this one."""
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path, dtype={"precision": str, "set": str}, keep_default_na=False)
    return table[(table[list(row)] == pd.Series(row)).all(axis=1)]


def all_trained(model: str, given: argparse.Namespace) -> pd.DataFrame:
    """Dice by seed (rows) and precision (columns); trains what is not in the table yet."""
    wanted = {}
    for precision, seed in product(given.precisions, range(given.seeds)):
        settings = (model, precision, seed, given.ndim, given.side, given.steps)
        row = dict(zip(SETTINGS, (*settings, " ".join(given.set), TORCH), strict=True))
        done = kept(given.out, row)
        if done.empty:
            done = pd.DataFrame([row | trained(model, precision, seed, given)])
            given.out.parent.mkdir(parents=True, exist_ok=True)
            done.to_csv(given.out, mode="a", header=not given.out.is_file(), index=False)
        wanted[precision, seed] = float(done["val/dice"].iloc[0])
    return pd.Series(wanted).unstack(0)[given.precisions]


def compared(full: pd.Series, half: pd.Series) -> str:
    """Mean of the paired difference, half the width of its 95 % interval, and the verdict."""
    apart = half - full
    mean, error = apart.mean(), apart.sem()
    wide = stats.t.ppf(0.975, len(apart) - 1) * error
    within = abs(mean) <= max(wide, full.std())
    verdict = "within" if within else "better" if mean > 0 else "worse"
    return f"{mean:+.3f} ± {wide:.3f}, {verdict}"


def slope(model: str, how: str, given: argparse.Namespace) -> torch.Tensor:
    """The gradient of the first loss with respect to all weights, which begin from seed 0, in a
    precision, or ``rounded``: in float32, with the weights rounded to bfloat16 before.
    """
    cfg = composed(model, 0, given)
    seed_everything(0, verbose=False)
    pairs, module = build(cfg.data).pairs("train"), build(cfg.module)
    module.log_dict = lambda *_, **__: None
    if how == "rounded":
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(module.parameters()).bfloat16().float(),
            module.parameters(),
        )
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(how)
    batch = default_collate([pairs[0], pairs[1]])
    with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
        loss = module.training_step(batch, 0)
    (loss / 128).backward()  # so that float16 does not overflow
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def compare_gradients(given: argparse.Namespace) -> None:
    """Print the cosines of gradients with that of float32."""
    ways = ("bf16-mixed", "16-mixed", "rounded")
    print(f"| model: cosine of gradients | {' | '.join(ways)} |\n|---|--:|--:|--:|")
    for model in given.models:
        if not [*build(composed(model, 0, given).module).parameters()]:
            continue
        exact = slope(model, "32", given)
        cosines = [torch.cosine_similarity(exact, slope(model, how, given), dim=0) for how in ways]
        print(f"| {model} | {' | '.join(f'{float(c):.4f}' for c in cosines)} |", flush=True)


def compare_trainings(given: argparse.Namespace) -> None:
    """Train every model in every precision; print Dice and differences."""
    halves = [name for name in given.precisions if name != "32"]
    columns = [*given.precisions, *(f"{name} - 32" for name in halves)]
    print(f"| model: Dice | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|")
    for model in given.models:
        try:
            dice = all_trained(model, given)
        except UserError as error:  # nothing to train
            print(error, flush=True)
            continue
        cells = [f"{dice[name].mean():.3f} ± {dice[name].std():.3f}" for name in dice]
        cells += [compared(dice["32"], dice[name]) for name in halves]
        print(f"| {model} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Compare trainings, or gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gradients", action="store_true", help="only compare the first ones")
    parser.add_argument("--ndim", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/precision.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    quieten()
    (compare_gradients if given.gradients else compare_trainings)(given)


if __name__ == "__main__":
    main()
