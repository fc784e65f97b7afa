"""The cost volume, forward and backward, against a loop over offsets and against unfolding.

``python benchmarks/cost_volume.py``: 3D, radius 1 to 4, one thread.  Times are seconds of the
processor, taken in turn in one process; memory is the growth of the largest resident size, in a
process of its own for each form.  Prints a table and writes outputs/benchmarks/cost_volume.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from regnet_lab.cost_volume import cost_volume, reference

SIZES = {1: 40, 2: 40, 3: 32, 4: 24}  # voxels along each axis, by radius
CHANNELS = 16


def unfolded(fixed: Tensor, moving: Tensor, radius: int) -> Tensor:
    """All windows of the moving map at once, contracted with the fixed one by einsum."""
    windows = F.pad(moving, [radius] * 6)
    for axis in (2, 3, 4):
        windows = windows.unfold(axis, 2 * radius + 1, 1)  # (B, C, *spatial, *offsets) in the end
    cost = torch.einsum("bcxyz,bcxyzijk->bijkxyz", fixed, windows) / fixed.shape[1]
    return cost.flatten(1, 3)


FORMS: dict[str, Callable[..., Tensor]] = {
    "ours": cost_volume,
    "loop": reference,
    "unfold": unfolded,
}


def case(radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two feature maps and a gradient to send back."""
    torch.manual_seed(0)
    grid = [SIZES[radius]] * 3
    fixed, moving = (torch.randn(1, CHANNELS, *grid).requires_grad_() for _ in range(2))
    return fixed, moving, torch.randn(1, (2 * radius + 1) ** 3, *grid)


def run(form: str, radius: int, given: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of the forward pass and of both passes."""
    fixed, moving, slope = given
    began = time.process_time()
    cost = FORMS[form](fixed, moving, radius)
    middle = time.process_time()
    torch.autograd.grad(cost, (fixed, moving), slope)
    return middle - began, time.process_time() - began


def timed(radius: int, forms: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median and least seconds of each form, measured in turn after a round of warming up."""
    given = case(radius)
    taken: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
    for turn in range(rounds + 1):
        for form in forms:
            seconds = run(form, radius, given)
            if turn:
                taken[form].append(seconds)
    rows = {}
    for form, pairs in taken.items():
        forward, both = zip(*pairs, strict=True)
        rows[form] = {
            "forward_median_s": statistics.median(forward),
            "forward_min_s": min(forward),
            "both_median_s": statistics.median(both),
            "both_min_s": min(both),
        }
    return rows


def peak_mb() -> float:
    """Largest resident size of this process so far; nan where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM")), float("nan"))


def grown(radius: int, form: str) -> float:
    """Megabytes that one run adds to a process, in a child of this one."""
    command = [sys.executable, __file__, "--child", form, "--radius", str(radius)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else float("nan")


def child(radius: int, form: str) -> None:
    """Print by how much one run, forward and backward, lets this process grow."""
    given = case(radius)
    before = peak_mb()
    run(form, radius, given)
    print(peak_mb() - before)


def main() -> None:
    """Measure all radii."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--radius", type=int, nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="outputs/benchmarks/cost_volume.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.radius[0], arguments.child)
        return
    rows = []
    print("radius | grid | form   | forward s (min) | both s (min) | times ours | peak MB")
    for radius in arguments.radius:
        times = timed(radius, list(FORMS), arguments.rounds)
        for form, row in times.items():
            ratio = row["both_min_s"] / times["ours"]["both_min_s"]
            memory = grown(radius, form)
            rows.append({"radius": radius, "grid": SIZES[radius], "form": form, **row})
            rows[-1] |= {"times_ours": ratio, "peak_mb": memory}
            print(
                f"{radius:6} | {SIZES[radius]:4} | {form:6} | "
                f"{row['forward_median_s']:.3f} ({row['forward_min_s']:.3f})   | "
                f"{row['both_median_s']:.3f} ({row['both_min_s']:.3f}) | "
                f"{ratio:10.1f} | {memory:.0f}",
                flush=True,
            )
    about = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, one thread",
        "torch": torch.__version__,
        "channels": CHANNELS,
    }
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**about, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
