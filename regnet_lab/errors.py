"""Errors that the user can fix: one sentence that names the file, key or value and what to do."""

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """Faulty input; the entry points print the message without a traceback and exit with 2."""


class MissingPackageError(UserError):
    """An optional package that a setting needs is not installed."""


class CommonError(UserError):
    """An error that every process of a distributed run raises; only the first one prints it."""


class DivergedError(CommonError):
    """A loss or a gradient that is no longer finite.

    Args:
        sentence: Which one, and what to do.
        batch: The batch that caused it; None in processes that stop because another one failed.
    """

    def __init__(self, sentence: str, batch: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.batch = batch
