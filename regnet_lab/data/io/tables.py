"""Reading of CSV tables and checks of their columns."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

from regnet_lab.errors import UserError
from regnet_lab.utils.files import require_file

DELIMITERS = (";", "\t", ",")  # the first that the header contains
BINARY_CHARACTERS = {chr(code) for code in range(32)} - set("\t\n\r\f")


def read_text(path: Path, purpose: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or else in Latin-1.

    Raises:
        UserError: The file is missing, or holds no text; ``purpose`` says what it should hold.
    """
    require_file(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give {purpose}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if BINARY_CHARACTERS.intersection(text):
        raise UserError(f"{path}: cannot be read as text; give {purpose}.")
    return text


def _split_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the stripped cells of each row that is not empty."""
    lines = read_text(path, "a CSV").splitlines(keepends=True)
    header = next((line for line in lines if line.strip()), "")
    delimiter = next((d for d in DELIMITERS if d in header), ",")
    if header.lower().startswith("sep=") and len(header.strip()) == 5:  # written by Excel
        delimiter = header[4]
        lines[lines.index(header)] = "\n"
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: cannot be read as a CSV ({error}); correct it."
        ) from error


def _check_header(path: Path, header: list[str], required: Sequence[str]) -> None:
    """Remove empty names at the end of a header, and check the others."""
    if not header:
        raise UserError(f"{path}: is empty; its first line must name the columns.")
    while not header[-1]:  # left by a delimiter at the end of the line
        header.pop()
    if missing := [column for column in required if column not in header]:
        raise UserError(f"{path}: has no column '{missing[0]}'; its first line must name it.")
    if doubled := [column for column in header if header.count(column) > 1]:
        raise UserError(f"{path}: has two columns '{doubled[0]}'; rename one of them.")


def read_table(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a CSV with ``required`` columns as text; empty cells are empty strings.

    Cells are separated by the first of semicolon, tab and comma that is in the header.  Text is
    UTF-8 or Latin-1.  Empty rows are left out.

    Raises:
        UserError: A row has more cells than the header, or a column name is missing or doubled.
    """
    rows = _split_rows(path)
    _, header = next(rows, (0, []))
    _check_header(path, header, required)
    table = []
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise UserError(
                f"{path}, line {line}: has {len(cells)} cells, but the header only {len(header)}; "
                "put text with a delimiter in quotes, or remove the extra cell."
            )
        padded = [*cells[: len(header)], *[""] * (len(header) - len(cells))]
        table.append(dict(zip(header, padded, strict=True)))
    return table


def parse_whole_number(value: object, place: str) -> int:
    """Parse a whole number that may be written with a decimal point or comma.

    >>> [parse_whole_number(value, "row 1") for value in (3, "3", "3.0", "3,0")]
    [3, 3, 3, 3]
    """
    try:
        number = float(str(value).replace(",", "."))
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise UserError(f"{place}: '{value}' must be a whole number.")
    return int(number)


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
