"""Seconds until ``--help`` is there.

``python benchmarks/startup.py``.
"""

import resource
import subprocess
import sys

import harness

COMMANDS = ("train.py", "evaluate.py", "register.py")


def children_s() -> float:
    """Processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Each command three times, the first of which is not counted."""
    arguments, rows = harness.options(__doc__), []
    for command in COMMANDS:
        taken = []
        for _ in range(3):
            before = children_s()
            wall, _ = harness.once(
                lambda c=command: subprocess.run(
                    [sys.executable, str(harness.ROOT / c), "--help"],
                    check=True,
                    capture_output=True,
                )
            )
            taken.append((wall, children_s() - before))
        wall, cpu = (min(times) for times in zip(*taken[1:], strict=True))
        rows.append({"command": f"python {command} --help", "min_s": wall, "cpu_s": cpu})
        print(rows[-1], flush=True)
    harness.save("startup", arguments, rows)


if __name__ == "__main__":
    main()
