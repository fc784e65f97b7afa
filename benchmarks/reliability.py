"""Faults at random moments, and what was lost: ``python benchmarks/reliability.py [--times 1.0]``.

Commands run in forked copies of this process, which has everything imported.  A fault counts as
lost if a file half-written was taken for whole, a result differs from the undisturbed one by a bit,
what was there before is damaged, or the sentence that says what to do is missing.  A trial in which
the command had ended before its fault came is not counted.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.faults.failures import dead_worker, not_finite
from benchmarks.faults.kills import (
    interrupt_in_training,
    kill_in_cache,
    kill_in_checkpoint,
    kill_in_evaluation,
    kill_in_training,
)
from benchmarks.faults.processes import Reference, TooLateError
from benchmarks.faults.shortages import (
    disk_full_in_checkpoint,
    disk_full_in_training,
    out_of_memory,
)
from benchmarks.malicious_files import list_malicious_files, open_malicious_file

FAULTS = {  # fault: how often at --times 1
    kill_in_training: 10,
    interrupt_in_training: 10,
    kill_in_evaluation: 10,
    kill_in_checkpoint: 100,
    kill_in_cache: 100,
    disk_full_in_checkpoint: 50,
    disk_full_in_training: 5,
    out_of_memory: 5,
    not_finite: 5,
    dead_worker: 20,
}


def loses_data(fault: Callable[..., bool], rng: random.Random, whole: Reference) -> bool:
    """Return whether one trial of a fault lost anything."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return fault(rng, Path(folder), whole)
        except TooLateError:
            raise
        except Exception as error:
            print(f"{fault.__name__}: {error!r}", file=sys.stderr)
            return True


def run_trials(
    fault: Callable[..., bool], times: int, rng: random.Random, whole: Reference
) -> list:
    """Return whether each of ``times`` trials of a fault lost anything."""
    losses: list[bool] = []
    for _ in range(3 * times):
        if len(losses) < times:
            with suppress(TooLateError):
                losses.append(loses_data(fault, rng, whole))
    return losses


def main() -> None:
    """Print the table; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--times", type=float, default=1.0, help="of the usual number of trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[fault.__name__ for fault in FAULTS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng, total = random.Random(arguments.seed), 0
    print("| fault | tried | lost | seconds |\n|---|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = Reference(Path(folder))
        for fault, usual in FAULTS.items():
            if fault.__name__ not in arguments.only:
                continue
            start = time.monotonic()
            losses = run_trials(fault, max(1, round(usual * arguments.times)), rng, whole)
            name, seconds = fault.__name__.replace("_", " "), time.monotonic() - start
            print(f"| {name} | {len(losses)} | {sum(losses)} | {seconds:.0f} |", flush=True)
            total += sum(losses)
    results = [open_malicious_file(file) for file in list_malicious_files().values()]
    bad = sum(ran or not message for message, ran in results)
    print(f"| a malicious file | {len(results)} | {bad} | |")
    sys.exit(bool(total + bad))


if __name__ == "__main__":
    main()
