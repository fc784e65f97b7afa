"""CPU seconds of one registration by each model, one thread, without loading and scoring.

    python benchmarks/pair_cost.py --data task04 --pairs 3 demons ants_syn pyramid

CPU time hardly depends on other load.  Networks have random weights, which cost the same.  A first
pair, not counted, imports the packages.
"""

import argparse
import statistics
import time
from itertools import islice
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.models import ANTs, Elastix
from regnet_lab.models.classical.subprocess import run_in_child_process

CONF = str(Path(__file__).parent.parent / "conf")


def configuration(*overrides: str):
    """Compose the configuration of evaluate.py."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("evaluate", [*overrides], return_hydra_config=True)
    cfg.hydra.runtime.output_dir = "output"
    HydraConfig.instance().set_config(cfg)
    return cfg


def cpu(model: torch.nn.Module) -> float:
    """Return CPU seconds so far, including the child process if the model uses it."""
    beside = isinstance(model, ANTs | Elastix)
    return time.process_time() + (
        run_in_child_process("numpy", time.process_time) if beside else 0.0
    )


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", default="task04")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="such as model.levels=3")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        cfg = configuration(f"model={name}", f"data={arguments.data}", *arguments.set)
        model, loader = (
            instantiate_config(cfg.model).eval(),
            instantiate_config(cfg.data).make_eval_dataloader("val"),
        )
        seconds = []
        with torch.no_grad():
            for pair in islice(loader, arguments.pairs + 1):
                before = cpu(model)
                model(pair["fixed"], pair["moving"])
                seconds.append(cpu(model) - before)
        print(f"{name:20s} {statistics.median(seconds[1:]):7.2f} s", flush=True)


if __name__ == "__main__":
    main()
