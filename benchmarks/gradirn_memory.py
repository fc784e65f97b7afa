"""Peak memory and seconds of a GraDIRN training step with and without gradient checkpointing.

``python benchmarks/gradirn_memory.py --sides 32 48 64``.  Each measurement runs in its own process,
so that its peak is its own: resident memory on a CPU, allocated memory on a GPU, minus what the
process used before the step.  Prints a table and writes outputs/benchmarks/gradirn_memory.json.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from regnet_lab import ops
from regnet_lab.models import GraDIRN
from regnet_lab.ops.similarity import mean_squares

STEPS = 2  # the first one also pays for what is made only once
FREED = {
    "MALLOC_MMAP_THRESHOLD_": "65536"
}  # glibc gives freed tensors back, so that peaks are true


def held(device: str) -> float:
    """Return the peak memory so far, in megabytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def step(model: GraDIRN, fixed: Tensor, moving: Tensor) -> float:
    """Return the seconds of a forward and a backward pass (mean squares of the last field)."""
    began = time.perf_counter()
    mean_squares(fixed, ops.warp(moving, model(fixed, moving)[-1])).sum().backward()
    if fixed.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(side: int, ndim: int, checkpointing: bool) -> dict[str, float]:
    """Measure megabytes and seconds of a step on one pair of ``side``^ndim voxels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GraDIRN(ndim, gradient_checkpointing=checkpointing).to(device)
    step(model, *torch.rand(2, 1, 1, *[12] * ndim, device=device))  # loads libraries
    fixed, moving = torch.rand(2, 1, 1, *[side] * ndim, device=device)
    before = held(device)
    seconds = min(step(model, fixed, moving) for _ in range(STEPS))
    return {"megabytes": held(device) - before, "seconds": seconds}


def apart(side: int, ndim: int, checkpointing: bool) -> dict[str, float]:
    """Run :func:`measure` in its own process."""
    arguments = ["--child", json.dumps([side, ndim, checkpointing])]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **FREED},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure every side with and without checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48, 64])
    parser.add_argument("--ndim", type=int, default=3)
    parser.add_argument("--output", default="outputs/benchmarks/gradirn_memory.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    rows = []
    print("voxels | checkpointing | MB | s")
    for side, checkpointing in product(arguments.sides, (False, True)):
        row = apart(side, arguments.ndim, checkpointing)
        rows.append({"side": side, "checkpointing": checkpointing} | row)
        size = f"{side}^{arguments.ndim}"
        print(f"{size} | {checkpointing} | {row['megabytes']:.0f} | {row['seconds']:.2f}")
    about = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "torch": torch.__version__}
    path = Path(arguments.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
