"""One table of many evaluations: ``python -m regnet_lab.report outputs/a outputs/b``."""

import argparse
import logging
import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regnet_lab.errors import UserError
from regnet_lab.report import boards
from regnet_lab.report.leaderboard import leaderboard


def terminal(grid: boards.Grid) -> Table:
    """A column for each method, so that it fits a narrow terminal."""
    methods, *rows = zip(*grid, strict=True)
    table = Table("", *map(escape, methods[1:]), title="mean ± standard deviation over cases")
    for row in rows:
        table.add_row(*map(escape, row))
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
        written = boards.write(board, given.out)
    except UserError as error:
        sys.exit(f"report: {error}")
    console = Console()
    console.print(terminal(boards.overview(board)))
    console.print(boards.note(board))
    console.print(f"Written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
