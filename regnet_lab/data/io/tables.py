"""Reading of CSV tables and checks of their columns."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from regnet_lab.errors import UserError


def read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV with ``required`` columns as text; empty cells are empty strings."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: this file is missing.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a CSV; repair or replace it.") from error
    if missing := [column for column in required if column not in table.columns]:
        raise UserError(f"{path}: has no column '{missing[0]}'; its first line must name it.")
    return table.to_dict("records")


def check_columns(source: str, columns: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise a UserError if the table ``source`` has a column that is not allowed, and suggest the
    most similar one.
    """
    if unknown := sorted(set(columns) - {*allowed}):
        raise UserError(
            f"{source}: the column '{unknown[0]}' is unknown; do you mean "
            f"'{find_similar_word(unknown[0], allowed)}'? Columns are {', '.join(allowed)}."
        )


def find_similar_word(word: str, words: Sequence[str]) -> str:
    """Return the one of ``words`` that is most similar to ``word``.

    >>> find_similar_word("fixd", ["fixed", "moving"])
    'fixed'
    """
    return get_close_matches(word.lower(), words, 1, 0)[0]
