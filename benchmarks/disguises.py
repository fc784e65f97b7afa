"""Harmful files from strangers, and whether anything of theirs runs.

``python benchmarks/disguises.py`` prints a row for each: how it was disguised, what was said.
Every one tries to make a folder, the canary; ``tests/test_safety.py`` goes through the same list.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.strangers.arrays import arrays
from benchmarks.strangers.canary import Disguise
from benchmarks.strangers.checkpoints import checkpoints
from benchmarks.strangers.configurations import configurations
from benchmarks.strangers.runs import runs
from regnet_lab.errors import UserError


def disguises() -> dict[str, Disguise]:
    """All of them by name."""
    return dict([*configurations(), *runs(), *checkpoints(), *arrays()])


def told(disguise: Disguise) -> tuple[str, bool]:
    """What was said of it, and whether anything ran."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "canary")
        (place := Path(folder, "place")).mkdir()
        victim = disguise(place, canary)
        try:
            victim()
        except UserError as error:
            said = " ".join(str(error).replace(str(place), "...").split())
        else:
            said = ""
        return said, canary.exists()


def main() -> None:
    """Print the table; exit code 1 if anything ran or was not refused."""
    results = {name: told(disguise) for name, disguise in disguises().items()}
    print("| disguise | refused with |\n|---|---|")
    for name, (said, _) in results.items():
        print(f"| `{name}` | {said[:150] or 'NOT REFUSED'} |")
    ran = sum(ran for _, ran in results.values())
    passed = sum(not said for said, _ in results.values())
    print(f"\n{len(results)} tried, {passed} not refused, {ran} ran")
    sys.exit(bool(ran or passed))


if __name__ == "__main__":
    main()
