"""Put what the benchmarks wrote into docs/results/performance.md, between the marks there.

``python benchmarks/tables.py``.  A mark is ``<!-- table NAME -->``; what follows it, up to ``<!--
end -->``, is replaced by the table of outputs/benchmarks/NAME.json, its command and its machine.
"""

import json
import math
import re
from collections.abc import Callable

import harness

PAGE = harness.ROOT / "docs/results/performance.md"
MARK = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)

Column = tuple[str, Callable[[harness.Row], object]]


def number(value: object, digits: int = 3) -> str:
    """Some significant digits, a dash for what is not known."""
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def scaled(key: str, factor: float = 1.0) -> Callable[[harness.Row], object]:
    """A number of a row times a factor, nothing where it has none."""
    return lambda row: row[key] * factor if isinstance(row.get(key), int | float) else None


OPERATORS: list[Column] = [
    ("operation", lambda row: row["operation"]),
    ("size", lambda row: row["size"]),
    ("form", lambda row: f"**{row['form']}**" if row["form"] == "ours" else row["form"]),
    ("threads", scaled("threads")),
    ("median ms", scaled("median_s", 1e3)),
    ("min ms", scaled("min_s", 1e3)),
    ("CPU ms", scaled("cpu_s", 1e3)),
    ("peak MB", scaled("peak_mb")),
    ("x ours", scaled("times_ours")),
    ("x limit", scaled("times_limit")),
]
TRAINING: list[Column] = [
    ("model", lambda row: row["model"]),
    ("parameters", lambda row: f"{row['parameters']:,}" if "parameters" in row else ""),
    ("size", lambda row: row["size"]),
    ("s a step", scaled("min_s")),
    ("CPU s", scaled("cpu_s")),
    ("samples a s", scaled("samples_s")),
    ("peak MB", lambda row: row.get("failed") or row["peak_mb"]),
]
PAIR: list[Column] = [
    ("method", lambda row: row["method"]),
    ("s", scaled("wall_s")),
    ("CPU s", scaled("cpu_s")),
    ("Dice", lambda row: row.get("failed") or row["dice"]),
]
STARTUP: list[Column] = [
    ("command", lambda row: f"`{row['command']}`"),
    ("s", scaled("min_s")),
    ("CPU s", scaled("cpu_s")),
]
LOADING: list[Column] = [
    (title, lambda row, title=title: row[title])
    for title in ("data", "memory /s", "folder /s", "uncached /s", "nibabel /s", "training /s")
]
SPECIAL = {"loading": LOADING, "training": TRAINING, "pair": PAIR, "startup": STARTUP}


VOXELMORPH, CORES = "VoxelMorph 0.3.4", 2
GOALS = [  # operation, size, peer, threads, times ours at least, file
    ("warp + gradient", "1 x 128 x 128 x 128", VOXELMORPH, CORES, 1.5, "warp"),
    ("warp + gradient", "1 x 128 x 128 x 128", "MONAI", CORES, 2.5, "warp"),
    ("warp + gradient", "8 x 256 x 256", VOXELMORPH, CORES, 2.5, "warp"),
    ("warp + gradient", "8 x 256 x 256", "MONAI", CORES, 2.5, "warp"),
    ("local NCC + gradient", "1 x 64 x 64 x 64", "MONAI", 1, 3.5, "local_ncc"),
    ("local NCC + gradient", "1 x 128 x 128 x 128", "MONAI", 1, 8.0, "local_ncc"),
    ("local NCC + gradient", "1 x 128 x 128 x 128", "neurite 0.3.4", 1, 4.0, "local_ncc"),
    ("cost volume + gradient", "40^3, radius 2", "loop", 1, 2.5, "cost_volume"),
    ("cost volume + gradient", "24^3, radius 4", "loop", 1, 2.5, "cost_volume"),
    ("B-spline field", "128^3", "scipy gaussian_filter", 1, 100.0, "dvf"),
    ("Gaussian peaks, 20", "128^3", "scipy gaussian_filter", 1, 15.0, "dvf"),
    ("Gaussian peaks, 35", "128^3", "scipy gaussian_filter", 1, 15.0, "dvf"),
    ("SDlogJ", "128^3", VOXELMORPH, 1, 4.0, "metrics"),
    ("Dice, 35 labels", "160 x 192 x 224", "MONAI", 1, 100.0, "metrics"),
    ("HD95, 35 labels", "64^3", "surface-distance", 1, 2.5, "metrics"),
    ("read a volume", "160 x 192 x 224", "nibabel .nii.gz", 1, 20.0, "volumes"),
]


def read_results(name: str) -> harness.Row:
    """What a benchmark wrote, no rows where it has not run."""
    path = harness.ROOT / f"outputs/benchmarks/{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"rows": []}


def goals() -> str:
    """Markdown of what was aimed at and what came out."""
    lines = ["| operation | size | threads | peer | times ours, goal | measured | |"]
    lines.append("|---|---|--:|---|--:|--:|---|")
    for operation, size, form, threads, goal, name in GOALS:
        criteria = {"operation": operation, "size": size, "form": form, "threads": threads}
        ratios = [
            r["times_ours"] for r in read_results(name)["rows"] if criteria.items() <= r.items()
        ]
        measured = ratios[0] if ratios else math.nan
        verdict = "" if not ratios else "reached" if measured >= goal else "**missed**"
        cells = (operation, size, threads, form, goal, measured, verdict)
        lines.append(f"| {' | '.join(number(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def table(name: str) -> str:
    """Markdown of one benchmark."""
    results = read_results(name)
    columns = SPECIAL.get(name, OPERATORS)
    lines = [[title for title, _ in columns], ["---", *["--:"] * (len(columns) - 1)]]
    lines += [[number(value(row)) for _, value in columns] for row in results["rows"]]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    limits = results.get("limits")
    rates = (
        f"; copy {limits['copy_gb_s']:.1f} GB/s, matrices {limits['matrix_gflop_s']:.0f} GFLOP/s"
        if limits
        else ""
    )
    return (
        f"`{results['command']}` on {results['processor']}, {results['cores']} cores, torch "
        f"{results['torch']}, load {results['load']:.1f} when it ended{rates}.\n\n{rows}\n"
    )


def main() -> None:
    """Every mark whose benchmark has run."""

    def filled(match: re.Match) -> str:
        name = match[1]
        if name == "goals":
            return f"<!-- table goals -->\n{goals()}<!-- end -->"
        if not read_results(name)["rows"]:
            print(f"{name} has not been measured: its table stays as it is")
            return match[0]
        return f"<!-- table {name} -->\n{table(name)}<!-- end -->"

    PAGE.write_text(MARK.sub(filled, PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
