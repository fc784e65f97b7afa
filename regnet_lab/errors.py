"""The error a user can mend: one sentence that names the file, key or value and says what to do."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """Bad input; the entry points print its sentence and exit with code 2, without a traceback."""


class MissingPackageError(UserError):
    """Something asked for needs a package of an extra that is not installed."""


class CommonError(UserError):
    """All processes that work together have it at once; the first one tells it."""


class DivergedError(CommonError):
    """A loss or a gradient is no longer finite.

    Args:
        sentence: Which one, and what to do.
        batch: On what; None in a process that stops because another one's is not.
    """

    def __init__(self, sentence: str, batch: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.batch = batch
