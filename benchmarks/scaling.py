"""Scaling on paper: memory, time and operations of a training step of every model, by grid.

``python benchmarks/scaling.py --sides 32 64``; ``--models gradirn faim`` for some.  A step is a
forward and a backward pass for one pair in float32, through mean squares of the warped image.
Each model has a process of its own, forked when all is imported, with one thread; memory is the
peak of resident memory less what was held before, seconds are those of the processor, so that
other work on the machine does not count, operations those of convolutions and matrix products.
Larger grids are extrapolated from the largest one measured::

    memory(V) = (memory(V0) - 4 P) V / V0 + 16 P        operations(V) = operations(V0) V / V0
    GPUs = pairs operations(V) / (86,400 s speed)

V voxels; P parameters, of which training keeps weights, gradients and Adam's two moments.  Prints
the table and writes outputs/benchmarks/scaling.json anew after each model.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from regnet_lab import ops
from regnet_lab.build import build
from regnet_lab.cli import CONF
from regnet_lab.similarity import mean_squares

MODELS = sorted(path.stem for path in Path(CONF, "model").glob("*.yaml"))
WHOLE = [name for name in MODELS if name not in ("identity", "regnet_multi_stage")]
GRIDS = {"64^3": 64**3, "128^3": 128**3, "160x192x224": 160 * 192 * 224}
FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed tensors back: peaks are true
PAIRS, SPEED, DAY = 100_000, 5e12, 86_400  # of a training, operations a second of a GPU, seconds
PAGE = resource.getpagesize()


def resident() -> float:
    """Megabytes held now."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE / 1e6


def step(model: torch.nn.Module, side: int) -> dict[str, float]:
    """A forward and a backward pass on side^3 voxels, measured."""
    fixed, moving = torch.rand(2, 1, 1, side, side, side)
    before, began = resident(), time.process_time()
    with FlopCounterMode(display=False) as counter:
        fields = model(fixed, moving)
        u = ops.resize_field(fields[-1], fixed.shape[2:])
        mean_squares(fixed, ops.warp(moving, u)).sum().backward()
    return {
        "seconds": time.process_time() - began,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before,
        "operations": counter.get_total_flops(),
    }


def measure(name: str, sides: list[int], out: multiprocessing.Queue) -> None:
    """Steps of a model, small grids first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with initialize_config_dir(CONF, version_base="1.3"):
        model = build(compose("train", [f"model={name}", "ndim=3"]).model)
    step(model, 20)  # pays for what is made only once
    parameters = sum(p.numel() for p in model.parameters())
    out.put({"parameters": parameters, **{side: step(model, side) for side in sides}})


def apart(name: str, sides: list[int]) -> dict:
    """:func:`measure` in a process of its own."""
    fork = multiprocessing.get_context("fork")
    out = fork.Queue()
    child = fork.Process(target=measure, args=(name, sides, out))
    child.start()
    while child.is_alive() and out.empty():
        time.sleep(0.2)
    found = out.get(timeout=5) if not out.empty() else {}
    child.join()
    return found


def row(name: str, found: dict, side: int) -> str:
    """The line of the table."""
    at, parameters = found[side], found["parameters"]
    volumes = [voxels / side**3 for voxels in GRIDS.values()]
    fixed = 16e-6 * parameters
    memory = [(at["megabytes"] - 4e-6 * parameters) * v / 1e3 + fixed / 1e3 for v in volumes]
    smaller = next((s for s in found if isinstance(s, int) and s < side), side)
    growth = [
        at[key] / found[smaller][key] / (side / smaller) ** 3 for key in ("megabytes", "seconds")
    ]
    gpus = PAIRS * at["operations"] * volumes[-1] / (SPEED * DAY)
    cells = [
        f"{parameters:,}",
        *(f"{m:.1f}" for m in memory),
        *(f"{at['seconds'] * v:.1f}" for v in volumes),
        f"{at['operations'] * volumes[-1] / 1e12:.2f}",
        f"{growth[0]:.2f}, {growth[1]:.2f}",
        f"{gpus:.2f} ({math.ceil(gpus)})",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure every model and print what follows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=WHOLE)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/scaling.json"))
    given = parser.parse_args()
    if not FREED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **FREED})
    sizes = [f"{unit} {grid}" for unit in ("GB", "CPU s") for grid in GRIDS]
    heads = ["parameters", *sizes, f"Tflop {list(GRIDS)[-1]}", "growth", "GPUs for a day"]
    print(f"| model | {' | '.join(heads)} |")
    print("|---" + "|--:" * len(heads) + "|")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else {}
    for name in given.models:
        if found := apart(name, sorted(given.sides)):
            known[name] = found
            print(row(name, found, max(given.sides)), flush=True)
            given.out.write_text(json.dumps(known, indent=2), "utf-8")
        else:
            print(f"| {name} | could not be measured |", flush=True)


if __name__ == "__main__":
    main()
