"""One table of many evaluations: ``python -m regnet_lab.report outputs/a outputs/b``."""

import argparse
import logging
import sys
from itertools import accumulate

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regnet_lab.errors import UserError
from regnet_lab.evaluation import leaderboard_tables
from regnet_lab.evaluation.leaderboard import leaderboard


def fitting(grid: leaderboard_tables.Grid, width: int) -> int:
    """How many of the first columns of a bordered table stay within the width."""
    ends = accumulate(max(map(len, column)) + 3 for column in zip(*grid, strict=True))
    return sum(end < width for end in ends)


def terminal(grid: leaderboard_tables.Grid, width: int) -> Table:
    """A column for each method where that fits, else a row, with the first metrics."""
    turned = [list(column) for column in zip(*grid, strict=True)]
    shown = turned if fitting(turned, width) == len(grid) else grid
    heads, *rows = (
        [escape(cell) for cell in row[: max(2, fitting(shown, width))]] for row in shown
    )
    heads[0] = ""
    table = Table(*heads, title="mean ± standard deviation over cases")
    for row in rows:
        table.add_row(*row)
    return table


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser("python -m regnet_lab.report", description=__doc__)
    found.add_argument("folders", nargs="+", help="evaluations, or runs with one: [name=]folder")
    found.add_argument(
        "--out", default="outputs/leaderboard", help="folder of the tables (%(default)s)"
    )
    found.add_argument("--reference", help="method with which all are compared (the best)")
    found.add_argument("--common", action="store_true", help="compare the cases that all have")
    found.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    return found


def main() -> None:
    """Write the leaderboard and print it."""
    logging.basicConfig(format="%(message)s")
    given = parser().parse_args()
    try:
        board = leaderboard(given.folders, given.reference, given.common, given.seed)
        written = leaderboard_tables.write(board, given.out)
    except UserError as error:
        sys.exit(f"report: {error}")
    console = Console()
    console.print(terminal(leaderboard_tables.overview(board), console.width))
    console.print(leaderboard_tables.note(board))
    console.print(f"Written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
