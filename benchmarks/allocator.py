"""Measure the effect of ``keep_freed_memory`` on the time of training steps.

``python benchmarks/allocator.py``; ``--models voxelmorph dirvnet`` for some.  Each in a process of
its own, in turn, on one thread of a CPU.
"""

import json
import resource
import subprocess
import sys
import time

import harness
import torch
from hydra import compose, initialize_config_dir

from regnet_lab.config.compose import CONFIG_DIR
from regnet_lab.config.instantiate import instantiate_config
from regnet_lab.utils import profiling

MODELS = ["voxelmorph", "gradirn", "pyramid", "faim", "dirvnet", "regnet_unet1"]
BATCH, SHAPE, STEPS = 2, (48, 64, 48), 3


def steps(model: str, held: bool) -> harness.Row:
    """Seconds of the best step, page faults of a step, peak memory."""
    if held and not profiling.keep_freed_memory():
        raise SystemExit("There is no glibc here.")
    torch.manual_seed(0)
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        network = instantiate_config(compose("train", [f"model={model}", "ndim=3"]).model)
    fixed, moving = torch.rand(2, BATCH, 1, *SHAPE)

    def step() -> None:
        network.zero_grad()
        torch.stack([u.square().mean() for u in network(fixed, moving)]).sum().backward()

    for _ in range(STEPS):  # until the heap has settled
        step()
    clock, work, before = [], [], resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(STEPS):
        began, worked = time.perf_counter(), time.process_time()
        step()
        clock.append(time.perf_counter() - began)
        work.append(time.process_time() - worked)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults = (after.ru_minflt - before.ru_minflt) // STEPS
    row = {"operation": model, "form": "held" if held else "returned", "size": [BATCH, *SHAPE]}
    return (
        row
        | {"min_s": min(clock), "cpu_s": min(work), "faults": faults}
        | {"peak_mb": after.ru_maxrss / 1024}
    )


def main() -> None:
    """Both forms of every model, twice, the better one counting."""
    arguments = harness.options(__doc__, models=MODELS, step="", held=0)
    if arguments.step:
        sys.stdout.write(json.dumps(steps(arguments.step, bool(arguments.held))))
        return
    rows = []
    for model in arguments.models:
        for held in (0, 1):
            command = [sys.executable, __file__, "--step", model, "--held", str(held)]
            runs = [
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                for _ in range(2)
            ]
            rows.append(min(runs, key=lambda row: row["cpu_s"]))
            print(rows[-1], flush=True)
    harness.save("allocator", arguments, rows)


if __name__ == "__main__":
    main()
