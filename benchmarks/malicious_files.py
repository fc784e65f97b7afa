"""Malicious files: whether each is refused and none of its code runs.

``python benchmarks/malicious_files.py`` prints the message with which each file is refused.  Each
tries to create a folder, the canary.  ``tests/config/test_untrusted_runs.py`` reads the same files.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.malicious.arrays import arrays
from benchmarks.malicious.canary import MaliciousFile
from benchmarks.malicious.checkpoints import checkpoints
from benchmarks.malicious.configurations import configurations
from benchmarks.malicious.runs import runs
from regnet_lab.errors import UserError


def list_malicious_files() -> dict[str, MaliciousFile]:
    """Return all malicious files by name."""
    return dict([*configurations(), *runs(), *checkpoints(), *arrays()])


def open_malicious_file(malicious_file: MaliciousFile) -> tuple[str, bool]:
    """Read a malicious file; return the error message, and whether its code ran."""
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder, "canary")
        (prepared := Path(folder, "place")).mkdir()
        read = malicious_file(prepared, canary)
        try:
            read()
        except UserError as error:
            message = " ".join(str(error).replace(str(prepared), "...").split())
        else:
            message = ""
        return message, canary.exists()


def main() -> None:
    """Print the table; exit code 1 if anything ran or was not refused."""
    files = list_malicious_files()
    results = {name: open_malicious_file(file) for name, file in files.items()}
    print("| file | refused with |\n|---|---|")
    for name, (message, _) in results.items():
        print(f"| `{name}` | {message[:150] or 'NOT REFUSED'} |")
    ran = sum(ran for _, ran in results.values())
    accepted = sum(not message for message, _ in results.values())
    print(f"\n{len(results)} tried, {accepted} not refused, {ran} ran")
    sys.exit(bool(ran or accepted))


if __name__ == "__main__":
    main()
