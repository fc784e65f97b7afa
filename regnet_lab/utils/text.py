"""Texts from files, made safe for logs, terminals and file names."""

import hashlib
import logging
import unicodedata

FILE_NAME_CHARACTERS = " _-.,+=@()[]"  # kept in file names besides letters and digits
MAX_FILE_NAME = 200  # bytes; file systems allow 255, with the suffix


def escape_control_characters(text: str) -> str:
    r"""Replace line breaks, escape sequences and invisible formatting by their codes.

    >>> escape_control_characters("case\n\x1b[31m1")
    'case\\n\\x1b[31m1'
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else char
        for char in text
    )


def make_file_name(name: str) -> str:
    """Return a name as one part of a path; different names give different results.

    Letters, digits and some punctuation are kept, others become ``%`` and their hexadecimal code,
    so that the name can neither leave a folder nor hide a file.  A long name is cut and ends with
    its hash.

    >>> make_file_name("sub-01")
    'sub-01'
    >>> make_file_name("../a")
    '%2E.%2Fa'
    """
    kept = "".join(
        c if c.isalnum() or c in FILE_NAME_CHARACTERS else f"%{ord(c):02X}" for c in name
    )
    kept = f"%2E{kept[1:]}" if kept.startswith(".") else kept or "%"
    if len(kept.encode()) > MAX_FILE_NAME:
        return f"{kept[: MAX_FILE_NAME // 4]}-{hashlib.sha256(name.encode()).hexdigest()}"
    return kept


class EscapingFormatter(logging.Formatter):
    """Formatter of log lines whose message cannot contain a line break or an escape sequence."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escape_control_characters(record.message)
        return super().formatMessage(record)


def print_line(text: str) -> None:
    """Print a text, which may contain any name, on one line of the terminal."""
    from rich.console import Console

    text = escape_control_characters(text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
