"""Report evaluations, sweeps and training runs as tables and figures.

Evaluations are folders that ``evaluate.py`` wrote, or any folder above some, such as a run;
``name=folder`` sets the name of a method.
"""

# Reports import what they need when they run, so that --help is quick.

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from regnet_lab.errors import UserError

PROGRAM = "python -m regnet_lab.cli.report"
HELP_FORMAT = argparse.RawDescriptionHelpFormatter

TextTable = Sequence[Sequence[str]]  # rows of text, the header first


def count_fitting_columns(table: TextTable, width: int) -> int:
    """Count the first columns of a bordered table that fit into ``width`` characters."""
    ends = accumulate(max(map(len, column)) + 3 for column in zip(*table, strict=True))
    return sum(end < width for end in ends)


def make_terminal_table(table: TextTable, width: int) -> Table:
    """Show a column per method if all fit, else a row per method with the first metrics."""
    transposed = [list(column) for column in zip(*table, strict=True)]
    rows = transposed if count_fitting_columns(transposed, width) == len(table) else table
    columns = max(2, count_fitting_columns(rows, width))
    header, *body = ([escape(cell) for cell in row[:columns]] for row in rows)
    header[0] = ""
    terminal_table = Table(*header, title="mean ± standard deviation over cases")
    for row in body:
        terminal_table.add_row(*row)
    return terminal_table


def run_leaderboard(arguments: argparse.Namespace) -> list[Path]:
    """Write the leaderboard and print its overview."""
    from regnet_lab.evaluation import leaderboard_tables
    from regnet_lab.evaluation.leaderboard import build_leaderboard

    leaderboard = build_leaderboard(
        arguments.evaluations, arguments.reference, arguments.common, arguments.seed
    )
    paths = leaderboard_tables.write_leaderboard(leaderboard, arguments.output)
    console = Console()
    overview = leaderboard_tables.make_overview_table(leaderboard)
    console.print(make_terminal_table(overview, console.width))
    console.print(leaderboard_tables.make_footnote(leaderboard))
    return paths


def run_html(arguments: argparse.Namespace) -> list[Path]:
    """Write the HTML report."""
    from regnet_lab.evaluation.html_report import render
    from regnet_lab.utils.atomic_io import write_text

    write_text(arguments.output, render.render_page(render.collect_content(arguments.evaluations)))
    return [arguments.output]


def run_sweep(arguments: argparse.Namespace) -> list[Path]:
    """Write the report of a sweep and print its table."""
    from regnet_lab.evaluation.sweep import write_sweep_report

    write_sweep_report(arguments.folder, arguments.mode)
    table = arguments.folder / "sweep.md"
    sys.stdout.write(table.read_text(encoding="utf-8"))
    names = ("sweep.csv", "sweep.md", "sweep.png")
    return [path for name in names if (path := arguments.folder / name).is_file()]


def run_tradeoff(arguments: argparse.Namespace) -> list[Path]:
    """Write figure and table of alignment against regularity."""
    from regnet_lab.evaluation.tradeoff import write_tradeoff

    write_tradeoff(arguments.evaluations, arguments.key, arguments.output)
    return [arguments.output, arguments.output.with_suffix(".csv")]


def run_per_label(arguments: argparse.Namespace) -> list[Path]:
    """Write figures and table of the scores by label."""
    from regnet_lab.evaluation.per_label import read_label_groups
    from regnet_lab.evaluation.per_label_plots import write_label_figures

    groups = read_label_groups(arguments.groups) if arguments.groups else None
    return write_label_figures(arguments.evaluations, arguments.output, arguments.metric, groups)


def run_curves(arguments: argparse.Namespace) -> list[Path]:
    """Write the figure of training curves."""
    from regnet_lab.utils.atomic_io import write_figure
    from regnet_lab.visualization.curves import plot_training_curves

    figure = plot_training_curves(arguments.runs, arguments.scalar)
    write_figure(arguments.output, figure, dpi=120)
    return [arguments.output]


Run = Callable[[argparse.Namespace], list[Path]]


def add_output(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Add the option for where to write."""
    summary = f"{what} (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path(default), help=summary)


def add_evaluations(parser: argparse.ArgumentParser) -> None:
    """Add the evaluations to report."""
    summary = "evaluation folders, or folders above them: [name=]folder"
    parser.add_argument("evaluations", nargs="+", help=summary)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser with all subcommands."""
    commands = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=HELP_FORMAT)
    subparsers = commands.add_subparsers(title="reports", metavar="REPORT")

    def add(name: str, run: Run, summary: str, example: str) -> argparse.ArgumentParser:
        epilog = f"example:\n  {PROGRAM} {name} {example}"
        parser = subparsers.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=HELP_FORMAT
        )
        parser.set_defaults(run=run)
        return parser

    summary = "compare methods: scores, confidence intervals, tests, ranks and costs"
    example = "outputs/demons voxelmorph=outputs/run --reference voxelmorph"
    parser = add("leaderboard", run_leaderboard, summary, example)
    add_evaluations(parser)
    add_output(parser, "outputs/leaderboard", "folder of the tables")
    parser.add_argument("--reference", help="method with which others are compared (the best)")
    common = "compare the common cases where some evaluations have more than others"
    parser.add_argument("--common", action="store_true", help=common)
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (%(default)s)")

    summary = "write one interactive HTML file: tables, example cases, curves"
    parser = add("html", run_html, summary, "outputs/demons outputs/run --output report.html")
    add_evaluations(parser)
    add_output(parser, "report.html", "HTML file")

    summary = "tabulate the trainings of a sweep (train.py -m) and draw parallel coordinates"
    parser = add("sweep", run_sweep, summary, "outputs/sweeps/search --mode min")
    parser.add_argument("folder", type=Path, help="folder of the sweep; gets sweep.csv, .md, .png")
    parser.add_argument(
        "--mode", choices=("max", "min"), default="max", help="best monitor value (%(default)s)"
    )

    summary = "draw alignment against regularity over the runs of a sweep"
    parser = add("tradeoff", run_tradeoff, summary, "loss.smoothness.weight outputs/sweeps/weight")
    parser.add_argument("key", help="key of the runs' configuration that was varied")
    add_evaluations(parser)
    add_output(parser, "tradeoff.png", "figure; a table of the same name ends in .csv")

    summary = "draw scores by label or by group of labels"
    example = "outputs/run --metric hd95_mm --groups conf/data/labels/dkt31_regions.yaml"
    parser = add("per-label", run_per_label, summary, example)
    add_evaluations(parser)
    parser.add_argument("--metric", default="dice", help="column of labels.csv (%(default)s)")
    parser.add_argument("--groups", type=Path, help="YAML file of groups: {name:, labels:}")
    add_output(parser, ".", "folder of the figures")

    summary = "draw a logged scalar of training runs against time"
    parser = add("curves", run_curves, summary, "val/dice outputs/run-a outputs/run-b")
    parser.add_argument("scalar", help="name in the TensorBoard log, such as val/dice")
    parser.add_argument("runs", nargs="+", help="run directories")
    add_output(parser, "curves.png", "figure")
    return commands


def main(command_line: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for, or print the help."""
    logging.basicConfig(format="%(message)s")
    parser = make_parser()
    arguments = parser.parse_args(command_line)
    if "run" not in arguments:
        parser.print_help()
        return
    try:
        paths = arguments.run(arguments)
    except UserError as error:
        sys.exit(f"report: {error}")
    Console().print(
        f"Written: {', '.join(map(str, paths))}", markup=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
