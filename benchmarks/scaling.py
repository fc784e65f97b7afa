"""Scaling on paper: memory, time and operations of a training step of every model, by grid.

``python benchmarks/scaling.py``; ``--models gradirn faim`` for some, ``--measure`` for those that
are also run.  A step is a forward and a backward pass for one pair in float32, through mean squares
of the warped image.

Counted on every grid without computing anything, on tensors that have a shape only: the
operations of convolutions and matrix products, and the bytes that the forward pass keeps for the
backward pass.  Measured at 64^3, in a process of its own with one thread: the peak of resident
memory less what was held before, and the processor's seconds, so that other work on the machine
does not count.  What was not measured follows from what was counted::

    memory(V) = kept(V) + 16 P          (least: what passes by in between comes on top)
    seconds(V) = seconds(64^3) operations(V) / operations(64^3)
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
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from regnet_lab import ops
from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.ops.similarity import mean_squares

MODELS = sorted(path.stem for path in Path(CONFIG_DIR, "model").glob("*.yaml"))
WHOLE = [name for name in MODELS if name != "regnet_multi_stage"]  # which begins from other runs
SIDE = 64
GRIDS = {"64^3": [SIDE] * 3, "128^3": [128] * 3, "160x192x224": [160, 192, 224]}
FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed tensors back: peaks are true
PAIRS, SPEED, DAY = 100_000, 5e12, 86_400  # of a training, operations a second of a GPU, seconds
PAGE = resource.getpagesize()


def resident() -> float:
    """Bytes held now."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * PAGE


def step(model: torch.nn.Module, shape: Sequence[int]) -> None:
    """A forward and a backward pass."""
    fixed, moving = torch.rand(2, 1, 1, *shape)
    u = ops.resize_field(model(fixed, moving)[-1], shape)
    mean_squares(fixed, ops.warp(moving, u)).sum().backward()


def model_of(name: str) -> torch.nn.Module:
    """A model as configured, for volumes."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return instantiate_config(compose("train", [f"model={name}", "ndim=3"]).model)


def hollow(module: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Replace all parameters and buffers by ones that have a shape only."""
    for part in module.modules():
        for key, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[key] = torch.nn.Parameter(mode.from_tensor(tensor.detach()))
        for key, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[key] = mode.from_tensor(tensor)


def counted(name: str, shape: Sequence[int]) -> dict[str, float]:
    """Operations of a step, and the bytes it keeps in between."""
    model, mode = model_of(name), FakeTensorMode(allow_non_fake_inputs=True)
    hollow(model, mode)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # holds it, so that no other gets its number
        return tensor

    with mode, FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda t: t):
        step(model, shape)
    stored_bytes = sum(storage.nbytes() for key, storage in storages.items() if key not in own)
    return {"operations": counter.get_total_flops(), "kept": stored_bytes}


def measure(name: str, out: multiprocessing.Queue) -> None:
    """Seconds and peak of a step on 64^3 voxels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = model_of(name)
    step(model, [20] * 3)  # pays for what is made only once
    before, began = resident(), time.process_time()
    step(model, [SIDE] * 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.put({"seconds": time.process_time() - began, "peak": peak - before})


def apart(name: str) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    fork = multiprocessing.get_context("fork")
    out = fork.Queue()
    child = fork.Process(target=measure, args=(name, out))
    child.start()
    while child.is_alive() and out.empty():
        time.sleep(0.2)
    costs = {} if out.empty() else out.get()
    child.join()
    return costs


def row(name: str, costs: dict) -> str:
    """The line of the table."""
    first, *_, last = (costs[grid] for grid in GRIDS)
    states = 16 * costs["parameters"]
    gpus = PAIRS * last["operations"] / (SPEED * DAY)
    cells = [f"{costs['parameters']:,}"]
    cells += [f"{(costs[grid]['kept'] + states) / 1e9:.2f}" for grid in GRIDS]
    cells += [f"{costs['peak'] / 1e9:.2f}" if "peak" in costs else "-"]
    cells += [f"{costs[grid]['operations'] / 1e12:.3g}" for grid in GRIDS]
    pace = costs["seconds"] / first["operations"] if costs.get("seconds") else math.nan
    cells += ["-" if pace != pace else f"{pace * costs[g]['operations']:.1f}" for g in GRIDS]
    return f"| {name} | {' | '.join([*cells, f'{gpus:.2f}'])} |"


def main() -> None:
    """Measure every model and print what follows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=WHOLE)
    parser.add_argument("--measure", nargs="*", default=WHOLE)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks/scaling.json"))
    arguments = parser.parse_args()
    if not FREED.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **FREED})
    heads = [f"{unit} {grid}" for unit in ("GB", "Tflop", "CPU s") for grid in GRIDS]
    heads = ["parameters", *heads[:3], "peak GB 64^3", *heads[3:], "GPUs"]
    print(f"| model | {' | '.join(heads)} |")
    print("|---" + "|--:" * len(heads) + "|")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    all_costs = (
        json.loads(arguments.output.read_text("utf-8")) if arguments.output.is_file() else {}
    )
    for name in arguments.models:
        parameters = sum(p.numel() for p in model_of(name).parameters())
        if not parameters:
            continue  # nothing to train
        try:
            costs = all_costs.get(name, {}) | {grid: counted(name, s) for grid, s in GRIDS.items()}
        except DataDependentOutputException:
            print(f"| {name} | cannot be counted: what it does depends on values |", flush=True)
            continue
        costs["parameters"] = parameters
        all_costs[name] = costs | (apart(name) if name in arguments.measure else {})
        print(row(name, all_costs[name]), flush=True)
        arguments.output.write_text(json.dumps(all_costs, indent=2), "utf-8")


if __name__ == "__main__":
    main()
