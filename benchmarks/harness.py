"""What the benchmarks share: forms of one operation timed in turn, memory, limits, a JSON file.

A benchmark gives rows; a row says what was done (``operation``, ``size``, ``form``) and what it
took: ``cpu_s`` is the least processor time of the runs, ``min_s`` and ``median_s`` are of the
clock.  On one thread ratios compare ``cpu_s``, which other programs disturb least, else ``min_s``.
"""

import argparse
import ctypes
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from regnet_lab.utils.profiling import Profile

Row = dict[str, Any]
Forms = dict[str, Callable[[], object] | None]

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def options(description: str | None, **extra: Any) -> argparse.Namespace:
    """Command line of a benchmark; sets the number of threads."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2, help="for each form of an operation")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks", help="folder")
    for name, default in extra.items():
        nargs = {"nargs": "*"} if isinstance(default, list) else {}
        kind = type(default[0] if isinstance(default, list) else default)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, type=kind, **nargs)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return arguments


def peer(module: str, name: str) -> Any:
    """An object of another package, or None and a line that says so."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        print(f"{module} is left out: {error}", flush=True)
        return None


def trim() -> None:
    """Give freed memory back to the system, so that growth is seen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def resident_mb() -> float:
    """Memory of this process now."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return float("nan")
    return int(pages.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def once(run: Callable[[], object], device: torch.device = CPU) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    with Profile(device) as profile:
        began = time.process_time()
        run()
        took = time.process_time() - began
    return profile.seconds, took


def peak_mb(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Memory that a run adds while it lasts; small numbers mean nothing."""
    trim()
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) / 2**20 if on_gpu else resident_mb()
    with Profile(device) as profile:
        run()
    return profile.peak_mb - before


def timed(
    forms: Forms, seconds: float, device: torch.device = CPU, rounds: int = 15
) -> dict[str, Row]:
    """Run every form in turn, each until it has used its seconds."""
    available = {name: run for name, run in forms.items() if run is not None}
    memory = {name: peak_mb(run, device) for name, run in available.items()}  # a warm-up too
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in available}
    counts = 1 if decisive(device) == "cpu_s" else 0
    for _ in range(rounds):
        for name, run in available.items():
            used = sum(taken[counts] for taken in runs[name])
            if not runs[name] or used + runs[name][0][counts] <= seconds:
                runs[name].append(once(run, device))
    return {
        name: {
            "median_s": statistics.median(wall for wall, _ in taken),
            "min_s": min(wall for wall, _ in taken),
            "cpu_s": min(cpu for _, cpu in taken),
            "peak_mb": memory[name],
            "runs": len(taken),
        }
        for name, taken in runs.items()
    }


def decisive(device: torch.device = CPU) -> str:
    """The time that ratios compare."""
    return "cpu_s" if device.type == "cpu" and torch.get_num_threads() == 1 else "min_s"


def compare(
    operation: str,
    size: str,
    forms: Forms,
    arguments: argparse.Namespace,
    floor_s: float = float("nan"),
) -> list[Row]:
    """Rows of all forms; each has how many times as long as ``ours`` it took, and ours how many
    times as long as the limit ``floor_s``.
    """
    taken = timed(forms, arguments.seconds, arguments.device)
    key, rows = decisive(arguments.device), []
    for name, row in taken.items():
        rows.append({"operation": operation, "size": size, "form": name, **row})
        rows[-1]["threads"] = torch.get_num_threads()
        rows[-1]["times_ours"] = row[key] / taken["ours"][key]
        rows[-1]["times_limit"] = row[key] / floor_s
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    """A row for the terminal."""
    return (
        f"{row['operation']:22} {row['size']:14} {row['form']:18} "
        f"median {row['median_s'] * 1e3:9.2f} ms, min {row['min_s'] * 1e3:9.2f}, "
        f"cpu {row['cpu_s'] * 1e3:9.2f}, {row['peak_mb']:6.0f} MB, "
        f"{row['times_ours']:6.2f} x ours, {row['times_limit']:6.1f} x limit"
    )


def least(run: Callable[[], object], device: torch.device, runs: int = 8) -> float:
    """Seconds of the fastest run."""
    taken = [once(run, device) for _ in range(runs)]
    return min(cpu if decisive(device) == "cpu_s" else wall for wall, cpu in taken)


def copy_bandwidth(device: torch.device = CPU, megabytes: int = 128) -> float:
    """Bytes a second, read and written, of copying between two buffers in use."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.zeros_like(source)
    best = least(lambda: target.copy_(source), device)
    return 2 * source.nbytes / best


def matrix_rate(device: torch.device = CPU, side: int = 1024) -> float:
    """Operations a second of a matrix product in float32."""
    a, b, out = (torch.randn(side, side, device=device) for _ in range(3))
    best = least(lambda: torch.mm(a, b, out=out), device)
    return 2 * side**3 / best


def limits(device: torch.device = CPU) -> Row:
    """What this machine can do at most."""
    return {"copy_gb_s": copy_bandwidth(device) / 1e9, "matrix_gflop_s": matrix_rate(device) / 1e9}


def floor(limits: Row, gigabytes: float = 0.0, gigaflop: float = 0.0) -> float:
    """Seconds that moving so much, or computing so much, takes at least."""
    return max(gigabytes / limits["copy_gb_s"], gigaflop / limits["matrix_gflop_s"])


def with_gradient(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> Callable[[], None]:
    """Value and gradients of a function, ones being sent back."""

    def run() -> None:
        for each in inputs:
            each.grad = None
        out = function(*inputs)
        out.backward(torch.ones_like(out))

    return run


def child(command: Sequence[str], timeout: float = 300) -> Row:
    """The JSON that another process prints last, or why there is none."""
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"failed": reason}
    return json.loads(done.stdout.strip().splitlines()[-1])


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def save(name: str, arguments: argparse.Namespace, rows: Iterable[Row], **more: Any) -> None:
    """Write outputs/benchmarks/<name>.json."""
    gpu = arguments.device.type == "cuda"
    about = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip(),
        "processor": torch.cuda.get_device_name() if gpu else processor(),
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, **more, "rows": list(rows)}, indent=1)
    (arguments.output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
